"""The training loop: what a step does, what a folder holds, how a training stops."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from mesascope.errors import CheckpointError, DivergenceError, InputError, StorageError
from mesascope.files import read_json, read_tensors
from mesascope.nn import ForgetGate, Linear, Mesa, MixedKey, Softmax, WriteGate
from mesascope.training import loop
from mesascope.training.config import ClipGradNorm, ClipGradValue, ConstantRate, TrainingConfig
from mesascope.training.loop import Progress, TrainingState, load_config, load_metrics, load_model, train
from mesascope.training.memory import require_memory, training_bytes


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(state: TrainingState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def test_loss_is_half_the_sum_over_dimensions_averaged_over_batch_and_time(generator: torch.Generator) -> None:
    predictions, targets = (torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = ((predictions - targets).numpy() ** 2).sum() / (2 * 3 * 5)
    assert float(loop.sequence_loss(predictions, targets)) == pytest.approx(expected, rel=1e-14)


def test_training_reduces_the_loss(tmp_path: Path) -> None:
    train(tiny.LINEAR, tmp_path)
    metrics = load_metrics(tmp_path)
    assert [record["step"] for record in metrics] == [0, 50, 100, 150]
    assert metrics[-1]["test_loss"] < 0.75 * metrics[0]["test_loss"]
    assert metrics[0]["train_loss"] is None
    assert metrics[-1]["train_loss"] < 0.8 * metrics[0]["test_loss"]


GATED = Mesa(key_shift=MixedKey(), forget=ForgetGate(), write=WriteGate())
NOT_DECAYED = ("raw_ridge", "raw_share", "gate.b")


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_updates_are_those_of_adamw_with_decay_of_weights_only(decay: float) -> None:
    """Three steps against the formulas of arXiv 1711.05101, Algorithm 2, in float64."""
    config = tiny.varied(tiny.HYBRID, weight_decay=decay, betas=(0.8, 0.95), epsilon=1e-6, gradient_clip=None)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention=(Softmax(), GATED)))
    state = TrainingState(config)
    state.model.double()
    own = copy.deepcopy(state.model)
    first = {name: torch.zeros_like(value) for name, value in own.named_parameters()}
    second = copy.deepcopy(first)
    for step in range(3):
        sequences = state.draw().to(torch.float64)
        loss = loop.sequence_loss(own(sequences.tokens), sequences.targets)
        gradients = torch.autograd.grad(loss, list(own.parameters()))
        assert state.update(sequences) == pytest.approx(float(loss.detach()), rel=1e-12)
        rate = config.schedule(step)
        with torch.no_grad():
            for (name, parameter), gradient in zip(own.named_parameters(), gradients, strict=True):
                first[name] = 0.8 * first[name] + 0.2 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient**2
                direction = (first[name] / (1 - 0.8 ** (step + 1))) / (
                    (second[name] / (1 - 0.95 ** (step + 1))).sqrt() + 1e-6
                )
                shrink = 0.0 if name.endswith(NOT_DECAYED) else rate * decay
                parameter.copy_((1 - shrink) * parameter - rate * direction)
    assert sum(name.endswith(NOT_DECAYED) for name in first) == 4
    for name, parameter in state.model.named_parameters():
        torch.testing.assert_close(parameter, own.get_parameter(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("micro_batch", [1, 3, 5, 8, 100])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch: int) -> None:
    def gradients(config: TrainingConfig) -> list[Tensor]:
        state = TrainingState(config)
        state.model.double()
        state.update(state.draw().to(torch.float64))
        return [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]

    whole = gradients(tiny.varied(tiny.HYBRID, micro_batch=8, gradient_clip=None))
    parts = gradients(tiny.varied(tiny.HYBRID, micro_batch=micro_batch, gradient_clip=None))
    assert len(whole) == len(parts) > 10
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)


def test_gradient_clipping() -> None:
    def gradient(clip: ClipGradValue | ClipGradNorm | None) -> Tensor:
        state = TrainingState(tiny.varied(tiny.HYBRID, gradient_clip=clip))
        state.update(state.draw())
        return torch.cat(
            [parameter.grad.flatten() for parameter in state.model.parameters() if parameter.grad is not None]
        )

    free = gradient(None)
    bound = 0.5 * float(free.abs().max())
    assert torch.equal(gradient(ClipGradValue(bound)), free.clamp(-bound, bound))
    assert torch.equal(gradient(ClipGradValue(1e6)), free)
    norm = float(free.norm())
    torch.testing.assert_close(gradient(ClipGradNorm(norm / 4)), free / 4, rtol=1e-4, atol=1e-9)
    assert torch.equal(gradient(ClipGradNorm(4 * norm)), free)


def test_what_a_finished_folder_holds(tmp_path: Path) -> None:
    progress: list[Progress] = []
    model = train(tiny.HYBRID, tmp_path, progress.append)
    assert set(contents(tmp_path)) == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "weights.safetensors",
        *(f"snapshots/{step:07d}.safetensors" for step in (0, 20, 40, 60)),
    }
    assert load_config(tmp_path) == tiny.HYBRID
    assert [item.step for item in progress] == list(range(1, 61))
    assert {item.steps for item in progress} == {60}
    stored = load_model(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value)
        assert torch.equal(load_model(tmp_path, 60).state_dict()[name], value)
    initial = TrainingState(tiny.HYBRID).model.state_dict()
    assert all(torch.equal(initial[name], value) for name, value in load_model(tmp_path, 0).state_dict().items())
    check_metrics(tmp_path, progress)


def check_metrics(folder: Path, progress: list[Progress]) -> None:
    metrics, losses = load_metrics(folder), [item.loss for item in progress]
    assert [record["step"] for record in metrics] == [0, 10, 20, 30, 40, 50, 60]
    assert set(metrics[0]) == {"step", "test_loss", "train_loss", "learning_rate", "seconds"}
    for record in metrics:
        step = int(record["step"])
        assert record["learning_rate"] == tiny.HYBRID.schedule(step)
        if step > 0:
            assert record["train_loss"] == pytest.approx(np.mean(losses[step - 10 : step]), rel=1e-12)
    seconds = [record["seconds"] for record in metrics]
    assert seconds == sorted(seconds)
    (batch,) = loop.test_sequences(tiny.HYBRID)
    assert batch.batch_size == 256
    for step in (0, 20, 40, 60):
        loss = loop.sequence_loss(load_model(folder, step).predict(batch), batch.targets)
        assert metrics[step // 10]["test_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_environment_names_versions_and_no_person_or_path(tmp_path: Path) -> None:
    train(tiny.varied(tiny.LINEAR, steps=1), tmp_path)
    environment = read_json(tmp_path / "environment.json")
    assert {"mesascope", "python", "torch", "numpy", "machine", "processor", "cores", "memory_gib", "system"} == set(
        environment
    )
    assert environment["torch"] == torch.__version__
    text = json.dumps(environment)
    assert str(Path.home()) not in text
    assert "/" not in text


def test_a_finished_folder_is_only_read(tmp_path: Path) -> None:
    trained = train(tiny.HYBRID, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    progress: list[Progress] = []
    again = train(tiny.HYBRID, tmp_path, progress.append)
    assert progress == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert all(torch.equal(again.state_dict()[name], value) for name, value in trained.state_dict().items())


def test_equal_configurations_give_equal_bits_and_seeds_differ(tmp_path: Path) -> None:
    for index, seed in enumerate((3, 3, 4)):
        torch.manual_seed(index)
        train(tiny.varied(tiny.HYBRID, steps=12, seed=seed), tmp_path / str(index))
    one, two, other = (load_model(tmp_path / str(index)).state_dict() for index in range(3))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].dim() == 2)


def test_the_folder_of_another_configuration_is_refused(tmp_path: Path) -> None:
    train(tiny.varied(tiny.LINEAR, steps=2), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds a run with another configuration; choose another folder"):
        train(tiny.varied(tiny.LINEAR, steps=3), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("stored", ["[]", '{"schema": 0, "config": {}}', '{"schema": 1}', "{"])
def test_a_folder_with_an_unreadable_configuration_is_refused(stored: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(stored)
    with pytest.raises(CheckpointError, match=r"config.json: (is not a configuration of schema 1|cannot be read)"):
        train(tiny.LINEAR, tmp_path)


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    huge = tiny.varied(tiny.LINEAR, batch_size=10**10, micro_batch=10**9)
    message = "batch_size, micro_batch, evaluation_batches: got 10000000000, 1000000000 and 1, which need about "
    with pytest.raises(InputError, match=message + r"[\d.]+ GiB, but [\d.]+ GiB of memory are free; make them smaller"):
        train(huge, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_test_sequences_count_as_memory() -> None:
    with pytest.raises(InputError, match=r"evaluation_batches: got .* and 100000000, which need"):
        require_memory(tiny.varied(tiny.LINEAR, evaluation_batches=10**8))


@pytest.mark.parametrize("config", [tiny.HYBRID, tiny.LINEAR], ids=["hybrid", "linear"])
def test_memory_estimate_covers_what_autograd_keeps(config: TrainingConfig) -> None:
    """The estimate is made from a batch of 2; at the true micro-batch it must hold and not be far off."""
    config = tiny.varied(config, batch_size=96, micro_batch=96)
    state = TrainingState(config)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    sequences = state.draw()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loop.sequence_loss(state.model(sequences.tokens), sequences.targets)
    estimate = training_bytes(config)
    assert sum(kept.values()) < estimate < 6 * sum(kept.values())
    require_memory(config, estimate)
    with pytest.raises(InputError, match=r"batch_size, micro_batch"):
        require_memory(config, estimate - 1)
    assert math.isfinite(float(loss.detach()))


DIVERGING = {
    "linear": tiny.varied(tiny.LINEAR, model=tiny.varied(tiny.LINEAR.model, attention=(Linear(), Linear()))),
    "mesa": tiny.varied(tiny.LINEAR, model=tiny.varied(tiny.LINEAR.model, attention=(Mesa(),))),
    "hybrid": tiny.HYBRID,
}


@pytest.mark.parametrize("name", DIVERGING)
def test_divergence_names_the_step_and_keeps_the_last_checkpoint(name: str, tmp_path: Path) -> None:
    config = tiny.varied(DIVERGING[name], schedule=ConstantRate(1e25), checkpoint_every=1, evaluate_every=1000)
    with pytest.raises(DivergenceError) as error:
        train(config, tmp_path)
    message = str(error.value)
    refused = tuple(f"step 1: the loss cannot be computed ({operand}: " for operand in ("q", "ridge"))
    assert message.startswith(("step 1: the loss is ", *refused))
    assert "at learning rate 1e+25; try a smaller learning rate" in message
    assert message.endswith(f"The last good checkpoint, after step 1, is kept in {tmp_path}")
    tensors, metadata = read_tensors(tmp_path / "checkpoint.safetensors")
    assert metadata["step"] == 1
    assert all(bool(value.isfinite().all()) for name, value in tensors.items() if name.startswith("model."))
    assert not (tmp_path / "weights.safetensors").exists()
    # the same folder stops at the same place
    with pytest.raises(DivergenceError, match=r"^step 1: "):
        train(config, tmp_path)


@pytest.mark.parametrize("name", DIVERGING)
def test_divergence_seen_by_an_evaluation(name: str, tmp_path: Path) -> None:
    config = tiny.varied(DIVERGING[name], schedule=ConstantRate(1e25), evaluate_every=1)
    with pytest.raises(
        DivergenceError, match=r"^step 1: the (test loss is|loss cannot) .*\. No checkpoint had been due yet$"
    ):
        train(config, tmp_path)
    assert [record["step"] for record in load_metrics(tmp_path)] == [0]


def test_a_configuration_that_a_layer_refuses_is_an_input_error(tmp_path: Path) -> None:
    model = tiny.varied(tiny.LINEAR.model, attention=(Mesa(1e-30),), key_dim=2)
    with pytest.raises(InputError, match=r"ridge: the smallest is 1e-30, too small for keys of this size"):
        train(tiny.varied(tiny.LINEAR, model=model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_layer_refuses_is_a_divergence_from_the_first_step_on() -> None:
    state = TrainingState(tiny.HYBRID)
    sequences = state.draw()
    bad = dataclasses.replace(sequences, tokens=torch.full_like(sequences.tokens, math.nan))
    with pytest.raises(InputError, match=r"^q: got values from nan to nan"):
        state.loss(bad)
    state.update(sequences)
    with pytest.raises(DivergenceError, match=r"^step 1: the loss cannot be computed \(q: .* try a smaller"):
        state.loss(bad)


def test_a_gradient_that_a_layer_refuses_is_a_divergence_as_well() -> None:
    def refuse(gradient: torch.Tensor) -> None:
        raise InputError("ridge: too small")

    state = TrainingState(tiny.HYBRID)
    state.update(state.draw())
    next(state.model.parameters()).register_hook(refuse)
    with pytest.raises(DivergenceError, match=r"^step 1: the loss cannot be computed \(ridge: too small\).* try a"):
        state.update(state.draw())


def test_a_loss_that_overflows_in_a_mesa_layer_is_named_as_such() -> None:
    """Its gradient is not finite, which is not the fault of the layer's solve."""
    state = TrainingState(tiny.HYBRID)
    sequences = state.draw()
    huge = dataclasses.replace(sequences, targets=torch.full_like(sequences.targets, 1e30))
    with pytest.raises(DivergenceError, match=r"^step 0: the loss is inf"):
        state.update(huge)


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path) -> None:
    state = TrainingState(tiny.LINEAR)
    state.update(state.draw())
    state.save(tmp_path)
    before = contents(tmp_path)
    with torch.no_grad():
        next(state.model.parameters())[0, 0] = math.inf
    with pytest.raises(DivergenceError, match=r"step 1: a weight is not finite"):
        state.save(tmp_path)
    assert contents(tmp_path) == before


def test_full_disk_stops_the_training_and_leaves_a_folder_to_go_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_files import no_space_at

    train(tiny.HYBRID, tmp_path / "whole")
    # config, environment, evaluation 0, snapshot 0, evaluation 10, checkpoint 15: the seventh write fails
    with no_space_at(7, monkeypatch), pytest.raises(StorageError, match=r"No space left on device"):
        train(tiny.HYBRID, tmp_path / "full")
    assert not [path for path in (tmp_path / "full").rglob("*") if path.name.startswith(".")]
    assert read_tensors(tmp_path / "full" / "checkpoint.safetensors")[1]["step"] == 15
    train(tiny.HYBRID, tmp_path / "full")
    whole, full = (load_model(tmp_path / name).state_dict() for name in ("whole", "full"))
    assert all(torch.equal(full[name], whole[name]) for name in whole)


def test_a_corrupted_checkpoint_is_refused(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny.HYBRID, tmp_path, stop)
    path = tmp_path / "checkpoint.safetensors"
    good = path.read_bytes()
    for bad in (good[:-10], good[:-10] + bytes([good[-10] ^ 1]) + good[-9:]):
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"corrupted checkpoint .* delete it to train from the start"):
            train(tiny.HYBRID, tmp_path)
    path.unlink()
    train(tiny.HYBRID, tmp_path)
    assert [record["step"] for record in load_metrics(tmp_path)] == [0, 10, 20, 30, 40, 50, 60]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for read in (load_config, load_metrics, load_model):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            read(tmp_path)
    train(tiny.varied(tiny.LINEAR, steps=1), tmp_path)
    with pytest.raises(CheckpointError, match=r"snapshots/0000007.safetensors"):
        load_model(tmp_path, 7)
