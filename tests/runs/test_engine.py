"""However many trainings run at once, they end with the same bits; one that fails leaves the others alone."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mesascope.errors import DivergenceError, InputError
from mesascope.files import read_tensors
from mesascope.nn import Transformer
from mesascope.runs import RunStore, train_all, train_each
from mesascope.training.config import ConstantRate, TrainingConfig
from mesascope.training.loop import Progress, train
from training.tiny import HYBRID, LINEAR, varied

SHORT = varied(HYBRID, steps=12, evaluate_every=6, snapshot_every=4)
CONFIGS = {"hybrid": SHORT, "linear": varied(LINEAR, steps=10), "other seed": varied(SHORT, seed=4)}
DIVERGING = varied(LINEAR, schedule=ConstantRate(1e12), steps=200)


class Progresses:
    """Remembers what it is called with."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Progress]] = []

    def __call__(self, label: str, progress: Progress) -> None:
        self.seen.append((label, progress))

    def last_steps(self) -> dict[str, int]:
        return {label: progress.step for label, progress in self.seen}


def weights(store: RunStore, config: TrainingConfig) -> dict[str, bytes]:
    """Every stored tensor, bit by bit, of the final weights and the snapshots."""
    return {
        f"{path.name}: {name}": tensor.numpy().tobytes()
        for path in sorted(store.folder(config).rglob("*.safetensors"))
        for name, tensor in read_tensors(path)[0].items()
    }


def test_workers_change_no_bit_and_an_error_stops_nothing_else(tmp_path: Path) -> None:
    one, two = RunStore(tmp_path / "one"), RunStore(tmp_path / "two")
    # trained in this order, so a single worker meets the error before the other trainings
    configs = {"too fast": DIVERGING, **CONFIGS}
    for workers, store in ((1, one), (2, two)):
        progresses = Progresses()
        with pytest.raises(
            DivergenceError, match=r"^too fast: step \d+: .* learning rate 1e\+12; try a smaller"
        ) as caught:
            train_all(configs, store, workers, progresses)
        assert "\n" not in str(caught.value)
        assert not store.is_finished(DIVERGING)
        last = progresses.last_steps()
        assert {label: last[label] for label in CONFIGS} == {label: config.steps for label, config in CONFIGS.items()}
    for config in CONFIGS.values():
        assert one.is_finished(config)
        assert weights(one, config) == weights(two, config)
    assert weights(one, SHORT) != weights(one, CONFIGS["other seed"])
    assert {name.split(":")[0] for name in weights(one, SHORT)} == {
        "weights.safetensors",
        *(f"{step:07d}.safetensors" for step in (0, 4, 8, 12)),
    }


def test_every_error_is_returned_by_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path)
    blocked = varied(LINEAR, steps=10, seed=9)
    # a file where a folder has to be: not an error that training expects
    store.root.mkdir(exist_ok=True)
    store.folder(blocked).write_text("in the way")
    configs = {"too fast": DIVERGING, "blocked": blocked, **CONFIGS}
    errors = train_each(configs, store, 2)
    assert list(errors) == ["too fast", "blocked"]
    assert isinstance(errors["too fast"], DivergenceError)
    assert isinstance(errors["blocked"], OSError)
    assert all(store.is_finished(config) for config in CONFIGS.values())
    assert list(train_each(configs, store, 1)) == ["too fast", "blocked"]


def test_finished_trainings_are_skipped(tmp_path: Path) -> None:
    store, progresses = RunStore(tmp_path), Progresses()
    train_all({"linear": CONFIGS["linear"]}, store, 1)
    path = store.folder(CONFIGS["linear"]) / "weights.safetensors"
    written = path.stat().st_mtime_ns
    train_all({name: CONFIGS[name] for name in ("linear", "hybrid")}, store, 1, progresses)
    assert path.stat().st_mtime_ns == written
    assert set(progresses.last_steps()) == {"hybrid"}
    train_all(CONFIGS, store, 1)
    train_all(CONFIGS, store, 2, progresses)
    assert set(progresses.last_steps()) == {"hybrid"}


def test_an_interrupt_ends_the_other_processes_and_keeps_their_checkpoints(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    endless = {f"{seed}": varied(HYBRID, steps=10**6, checkpoint_every=1, seed=seed) for seed in range(3)}
    started = set()

    def interrupt(label: str, progress: Progress) -> None:
        started.add(label)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(endless, store, 2, interrupt)
    assert started
    for label in started:
        assert (store.folder(endless[label]) / "checkpoint.safetensors").exists()
    assert not store.folder(endless["2"]).exists()


def test_no_process_outlives_one_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("train_in_processes.py")), str(tmp_path)]
    with subprocess.Popen(command) as parent:
        while len(list(tmp_path.glob("*/checkpoint.safetensors"))) < 2:
            assert parent.poll() is None
            time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    time.sleep(0.5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_workers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers: got 0, but it must be at least 1"):
        train_all(CONFIGS, RunStore(tmp_path / "runs"), 0)
    assert not (tmp_path / "runs").exists()


def test_nothing_to_train(tmp_path: Path) -> None:
    train_all({}, RunStore(tmp_path / "runs"), 2)
    assert not (tmp_path / "runs").exists()


def test_store_reads_back_what_was_trained(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert not store.is_finished(SHORT)
    model = train(SHORT, store.folder(SHORT))
    assert store.is_finished(SHORT)
    assert store.snapshot_steps(SHORT) == [0, 4, 8, 12]
    assert [record["step"] for record in store.metrics(SHORT)] == [0, 6, 12]
    found, last, first = store.model(SHORT, "ours"), store.snapshot(SHORT, 12, "end"), store.snapshot(SHORT, 0, "begin")
    assert (found.name, last.name, first.name) == ("ours", "end", "begin")
    assert same_weights(found, model)
    assert same_weights(found, last)
    assert not same_weights(found, first)


def same_weights(one: Transformer, other: Transformer) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def test_folders_differ_with_the_configuration(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.folder(SHORT) == store.folder(varied(SHORT))
    assert store.folder(SHORT) != store.folder(varied(SHORT, seed=SHORT.seed + 1))
