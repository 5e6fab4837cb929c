"""A training that was stopped anywhere and started again ends with the bits of one that was not."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from mesascope.files import read_tensors
from mesascope.training.loop import Progress, load_metrics, train

SCRIPT = Path(__file__).parent / "train_slowly.py"


class StopTrainingError(Exception):
    """Ends a training from its progress callback."""


def bits(folder: Path) -> dict[str, bytes]:
    """Every tensor of every file of weights in `folder`, as bytes."""
    return {
        f"{path.relative_to(folder)}: {name}": tensor.numpy().tobytes()
        for path in folder.rglob("*.safetensors")
        for name, tensor in read_tensors(path)[0].items()
    }


def metrics(folder: Path) -> list[dict[str, float | None]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in load_metrics(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(tiny.HYBRID, folder)
    return folder


@pytest.mark.parametrize(
    "stops",
    [(1,), (14,), (15,), (16,), (20,), (21,), (30,), (31,), (46,), (60,), (16, 31, 31, 46), (16, 17, 44)],
    ids=str,
)
def test_stopped_after_a_step(stops: tuple[int, ...], uninterrupted: Path, tmp_path: Path) -> None:
    """Evaluations are every 10 steps, checkpoints every 15, snapshots every 20: all coincidences occur."""
    for last in stops:

        def stop(progress: Progress, last: int = last) -> None:
            if progress.step == last:
                raise StopTrainingError

        with pytest.raises(StopTrainingError):
            train(tiny.HYBRID, tmp_path, stop)
    train(tiny.HYBRID, tmp_path)
    assert bits(tmp_path) == bits(uninterrupted)
    assert metrics(tmp_path) == metrics(uninterrupted)


def test_resuming_starts_at_the_checkpoint(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 40:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        train(tiny.HYBRID, tmp_path, stop)
    assert [record["step"] for record in load_metrics(tmp_path)] == [0, 10, 20, 30]
    steps: list[int] = []
    train(tiny.HYBRID, tmp_path, lambda progress: steps.append(progress.step))
    assert steps == list(range(31, 61))


def test_resuming_removes_what_a_killed_write_left(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 40:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        train(tiny.HYBRID, tmp_path, stop)
    left = [tmp_path / ".checkpoint.safetensors.a1b2c3d4.unfinished", tmp_path / "snapshots" / ".x.1_2.unfinished"]
    for path in left:
        path.write_bytes(b"half a file")
    train(tiny.HYBRID, tmp_path)
    assert not any(path.exists() for path in left)
    assert not list(tmp_path.rglob(".*"))


def test_seconds_go_on_after_a_resume(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        time.sleep(0.01)
        if progress.step == 31:
            raise StopTrainingError

    with pytest.raises(StopTrainingError):
        train(tiny.HYBRID, tmp_path, stop)
    train(tiny.HYBRID, tmp_path)
    seconds = [record["seconds"] for record in load_metrics(tmp_path)]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0.3


def test_killed_processes(tmp_path: Path) -> None:
    """SIGKILL at random moments after a first and after later checkpoints, each time resumed by a new process."""
    moments = random.Random(0)
    whole, killed, steps = tmp_path / "whole", tmp_path / "killed", "150"
    subprocess.run([sys.executable, SCRIPT, whole, steps, "0"], check=True, timeout=300)
    checkpoint, kills = killed / "checkpoint.safetensors", 0
    while kills < 3:
        seen = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen([sys.executable, SCRIPT, killed, steps, "0.02"])
        deadline = time.monotonic() + 120
        while not checkpoint.exists() or checkpoint.stat().st_mtime_ns == seen:
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kills += 1
        assert not (killed / "weights.safetensors").exists()
    subprocess.run([sys.executable, SCRIPT, killed, steps, "0"], check=True, timeout=300)
    assert bits(killed) == bits(whole)
    assert metrics(killed) == metrics(whole)
    assert [record["step"] for record in metrics(killed)] == list(range(0, 151, 10))
    assert json.loads((killed / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
