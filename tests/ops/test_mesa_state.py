"""The state between tokens: split anywhere, one token at a time, through a file."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mesascope.errors import CheckpointError, InputError, StorageError
from mesascope.files import write_tensors
from mesascope.ops import MesaState, mesa_attention
from mesascope.ops.mesa.problem import Regularizer

from .mesa_cases import BACKENDS, GATES, REGULARIZERS, SHAPES, Case, Operands, draw, relative

LONG = (1, 70, 2, 3, 2)


def part(operands: Operands, start: int, stop: int) -> Operands:
    """Its tokens from `start` to `stop`, with its state."""
    in_time = ("q", "k", "v", "log_forget", "write")
    cut = {name: tensor[:, start:stop] for name, tensor in operands.tensors().items() if name in in_time}
    return replace(operands, **cut)


def run_in_parts(operands: Operands, backend: str, ends: list[int]) -> dict[str, Tensor]:
    outputs, current, start = [], operands, 0
    for end in ends:
        results = part(current, start, end).run(backend)
        outputs.append(results["output"])
        current, start = replace(operands, matrix=results["matrix"], association=results["association"]), end
    return {**results, "output": torch.cat(outputs, 1)}


def differentiate(operands: Operands, results: dict[str, Tensor]) -> list[Tensor]:
    inputs = list(operands.tensors().values())
    return list(torch.autograd.grad(operands.loss(results), inputs, materialize_grads=True))


@pytest.mark.parametrize("start", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_split_anywhere_equals_one_run(backend: str, regularizer: str, gates: str, start: bool) -> None:
    """Values and gradients, the gradient of the later part flowing through the state into the earlier one."""
    for shape, splits in ((SHAPES["B2-T7-H2-D3-Dv2"], range(8)), (LONG, (1, 32, 33, 64, 69))):
        operands = draw(Case(shape, regularizer, gates, "diagonal", start)).with_gradients()
        whole = operands.run(backend)
        whole_gradients = differentiate(operands, whole)
        for split in splits:
            parts = run_in_parts(operands, backend, [split, shape[1]])
            for name, expected in whole.items():
                assert relative(parts[name], expected) <= 1e-10, f"{name}, split at {split}"
            for name, found, expected in zip(
                operands.tensors(), differentiate(operands, parts), whole_gradients, strict=True
            ):
                assert relative(found, expected) <= 1e-9, f"gradient of {name}, split at {split}"


@pytest.mark.parametrize("start", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_token_by_token_equals_all_at_once(regularizer: str, gates: str, start: bool) -> None:
    for shape in (SHAPES["B2-T7-H2-D3-Dv2"], SHAPES["B2-T6-H1-D1-Dv1"], LONG):
        operands = draw(Case(shape, regularizer, gates, "diagonal", start)).with_gradients()
        whole = operands.run("reference")
        batch, time, heads, d, d_v = shape
        if start:
            state = MesaState(regularizer, operands.matrix, operands.association)
        else:
            state = MesaState.initial(
                operands.ridge, batch=batch, heads=heads, key_dim=d, value_dim=d_v, regularizer=regularizer
            )
        outputs = []
        for t in range(time):
            token = {name: tensor[:, t] for name, tensor in vars(part(operands, 0, time)).items() if name in "qkv"}
            gates_now = {
                name: gate[:, t] for name, gate in operands.tensors().items() if name in ("log_forget", "write")
            }
            output, state = state.step(**token, ridge=operands.ridge, **gates_now)
            outputs.append(output)
        steps = {"output": torch.stack(outputs, 1), "matrix": state.matrix, "association": state.association}
        for name, expected in whole.items():
            assert relative(steps[name], expected) <= 1e-10, name
        exact = differentiate(operands, whole)
        for name, found, expected in zip(operands.tensors(), differentiate(operands, steps), exact, strict=True):
            assert relative(found, expected) <= 1e-9, f"gradient of {name}"


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("backend", ["reference", "chunked", "auto"])
def test_a_final_state_is_of_the_regularizer_asked_for(backend: str, regularizer: str, gates: str) -> None:
    operands = draw(Case(SHAPES["B2-T7-H2-D3-Dv2"], regularizer, gates))
    q, k, v, ridge = operands.q, operands.k, operands.v, operands.ridge
    _, state = mesa_attention(q, k, v, ridge, backend=backend, return_state=True, **operands.options())
    assert state.regularizer == regularizer
    assert relative(state.matrix, operands.run("reference")["matrix"]) <= 1e-10


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_many_steps_in_float32_stay_near_the_truth(regularizer: str) -> None:
    operands = draw(Case((1, 2000, 2, 8, 8), regularizer, "forget and write", "head"))
    expected = operands.run("chunked")
    single = operands.to(torch.float32)
    state = MesaState.initial(single.ridge, batch=1, heads=2, key_dim=8, value_dim=8, regularizer=regularizer)
    outputs = []
    for t in range(2000):
        output, state = state.step(
            *(operand[:, t] for operand in (single.q, single.k, single.v)),
            single.ridge,
            log_forget=single.log_forget[:, t],
            write=single.write[:, t],
        )
        outputs.append(output)
    assert relative(torch.stack(outputs, 1), expected["output"]) <= 1e-4
    assert relative(state.matrix, expected["matrix"]) <= 1e-4


def test_initial_states() -> None:
    ridge = torch.tensor([[0.5, 2.0, 4.0]])
    state = MesaState.initial(ridge, batch=2, heads=1, key_dim=3, value_dim=5)
    assert torch.equal(state.matrix, torch.diag(1 / ridge[0]).expand(2, 1, 3, 3))
    assert torch.equal(state.association, torch.zeros(2, 1, 5, 3))
    constant = MesaState.initial(ridge.bfloat16(), batch=2, heads=1, key_dim=3, value_dim=5, regularizer="constant")
    assert torch.equal(constant.matrix, torch.zeros(2, 1, 3, 3))
    assert constant.matrix.dtype == torch.float32
    with pytest.raises(InputError, match=r"ridge: got shape \(1, 3\)"):
        MesaState.initial(ridge, batch=2, heads=2, key_dim=2, value_dim=5)


def test_an_initial_state_without_numbers() -> None:
    sizes = {"batch": 2, "heads": 3, "key_dim": 4, "value_dim": 5}
    assert MesaState.initial(torch.ones(3, device="meta"), **sizes).matrix.is_meta
    with FakeTensorMode():
        assert MesaState.initial(torch.ones(3), **sizes).matrix.shape == (2, 3, 4, 4)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(("batch", "heads"), [(0, 2), (3, 0)])
def test_steps_of_no_head_at_all(batch: int, heads: int, regularizer: Regularizer) -> None:
    ridge, q, v = torch.ones(()), torch.ones(batch, heads, 4), torch.ones(batch, heads, 5)
    sizes = {"batch": batch, "heads": heads, "key_dim": 4, "value_dim": 5}
    state = MesaState.initial(ridge, **sizes, regularizer=regularizer)
    output, after = state.step(q, q, v, ridge)
    assert output.shape == v.shape
    assert after.matrix.shape == state.matrix.shape


def test_a_state_moves_between_types_and_out_of_the_graph() -> None:
    state = MesaState.initial(torch.ones(2, requires_grad=True), batch=1, heads=2, key_dim=3, value_dim=3)
    assert state.matrix.requires_grad
    assert not state.detach().matrix.requires_grad
    double = state.to(torch.float64)
    assert (double.matrix.dtype, double.association.dtype) == (torch.float64, torch.float64)
    assert double.regularizer == "initial"


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_a_state_comes_back_from_a_file_with_its_bits(regularizer: str, tmp_path: Path) -> None:
    operands = draw(Case(SHAPES["B2-T7-H2-D3-Dv2"], regularizer)).with_gradients()
    results = operands.run("chunked")
    state = MesaState(regularizer, results["matrix"], results["association"])
    state.save(tmp_path / "new" / "state.safetensors")
    loaded = MesaState.load(str(tmp_path / "new" / "state.safetensors"))
    assert loaded.regularizer == regularizer
    assert torch.equal(loaded.matrix, state.matrix)
    assert torch.equal(loaded.association, state.association)
    assert not loaded.matrix.requires_grad
    negated = MesaState(regularizer, torch._neg_view(state.matrix.detach()), state.association.detach())
    negated.save(tmp_path / "negated")
    assert torch.equal(MesaState.load(tmp_path / "negated").matrix, -state.matrix)


def test_a_full_disk_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = MesaState.initial(torch.ones(1), batch=1, heads=1, key_dim=2, value_dim=2)
    state.save(tmp_path / "state")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=r"Free space or choose another folder, then save the state again"):
        state.to(torch.float64).save(tmp_path / "state")
    assert MesaState.load(tmp_path / "state").matrix.dtype == torch.float32


def test_what_is_not_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none: corrupted checkpoint \(No such file.*\); save the state again"):
        MesaState.load(tmp_path / "none")
    write_tensors(tmp_path / "other", {"weights": torch.ones(2)}, {"step": 3})
    with pytest.raises(CheckpointError, match=r"other: not a mesa state"):
        MesaState.load(tmp_path / "other")


def test_memory_of_a_state_does_not_grow_with_time() -> None:
    sizes = set()
    for time in (1, 50):
        operands = draw(Case((1, time, 1, 3, 2)))
        _, state = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, return_state=True)
        sizes.add(state.matrix.untyped_storage().nbytes() + state.association.untyped_storage().nbytes())
    assert sizes == {(9 + 6) * 8}
