"""The command line: what it prints and writes, and that every mistake is one line that leaves files alone."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesascope import cli
from mesascope.claims import MeasuredClaim
from mesascope.config import SCHEMA, to_json
from mesascope.experiments import figures
from mesascope.training.config import TrainingConfig
from mesascope.training.loop import load_model, read_config
from mesascope.training.presets import paper_trainings
from training.tiny import HYBRID, LINEAR, varied

TINY = varied(LINEAR, steps=20, evaluate_every=10)


def write_config(path: Path, config: TrainingConfig, **changes: Any) -> Path:
    """Store `config`, with the JSON fields named by dotted `changes` replaced."""
    stored = {"schema": SCHEMA, "config": to_json(config)}
    for name, value in changes.items():
        *parents, last = name.split(".")
        place: Any = stored["config"]
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(stored))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with status 2 and one line on stderr, which is returned."""

    def run(*arguments: str | Path) -> str:
        capsys.readouterr()
        assert cli.main([str(argument) for argument in arguments]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("mesascope: ")
        assert shown.err.count("\n") == 1
        assert shown.err.endswith("\n")
        assert "Traceback" not in shown.out + shown.err
        return shown.err

    return run


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["quickstart", *(found.name for found in figures())]
    assert all("quick" in line and "paper" in line and line.endswith("min)") for line in lines)


def test_config_lists_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config"]) == 0
    assert capsys.readouterr().out.splitlines() == list(paper_trainings())


@pytest.mark.parametrize("name", ["lin-1", "partial-hybrid", "nonlinear-softmax-7"])
def test_printed_configuration_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert cli.main(["config", name]) == 0
    path = tmp_path / "config.json"
    path.write_text(capsys.readouterr().out)
    assert read_config(path) == paper_trainings()[name]


def test_misspelt_names(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert fails("config", "lin1") == "mesascope: name: got 'lin1'; did you mean 'lin-1'?\n"
    message = fails("reproduce", "fig99", "--out", tmp_path / "x")
    assert message.startswith("mesascope: experiment: got 'fig99'; did you mean 'fig")
    assert not (tmp_path / "x").exists()


def test_train(tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]) -> None:
    config, out = write_config(tmp_path / "config.json", TINY), tmp_path / "a folder with a long name [and brackets]"
    assert cli.main(["train", str(config), "--out", str(out)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("test loss ")
    assert last.endswith(f" after 20 steps; weights in {out}")
    assert load_model(out).config == TINY.model
    before = contents(out)
    message = fails("train", config, "--out", out)
    assert message == f"mesascope: out: {out} is not empty; choose a new folder, or go on in it with --resume\n"
    assert contents(out) == before
    assert cli.main(["train", str(config), "--out", str(out), "--resume"]) == 0
    assert contents(out) == before


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"step": 10}, "config.step: no such field in TrainingConfig; did you mean 'steps'?"),
    "unknown nested field": ({"task.noise": 0.1}, "config.task.noise: no such field in Dynamics; did you mean"),
    "wrong type": ({"steps": "ten"}, "config.steps: got 'ten', but it must be of type int"),
    "unknown kind": ({"schedule.type": "Cosine"}, "config.schedule.type: got 'Cosine'; did you mean 'WarmupCosine'?"),
    "negative noise": ({"task.noise_std": -0.1}, "config.task.noise_std: got -0.1, but it must be at least 0"),
    "short sequence": ({"task.length": 1}, "config.task.length: got 1, but it must be at least 2"),
    "large observation": ({"task.n_s": 4}, "config.task.n_s: got 4, but it must be between 1 and n_h (3)"),
    "no key": ({"model.key_dim": 0}, "config.model.key_dim: got 0, but it must be at least 1"),
    "other model": ({"model.token_dim": 13}, "config.model.token_dim: got 13, but the tokens of the task have size 12"),
    "memory": ({"batch_size": 10**9}, "batch_size, micro_batch, evaluation_batches: got 1000000000, 16 and 1, which"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_file_are_named_before_anything_is_written(
    tmp_path: Path, fails: Callable[..., str], mistake: str
) -> None:
    changes, expected = MISTAKES[mistake]
    config = write_config(tmp_path / "config.json", TINY, **changes)
    assert fails("train", config, "--out", tmp_path / "out").startswith(f"mesascope: {expected}")
    assert set(contents(tmp_path)) == {"config.json"}
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_configuration(tmp_path: Path, fails: Callable[..., str]) -> None:
    path, out = tmp_path / "config.json", tmp_path / "out"
    for content in (None, "{", "[1]", '{"schema": 99, "config": {}}'):
        if content is not None:
            path.write_text(content)
        message = fails("train", path, "--out", out)
        assert str(path) in message
        assert "delete" not in message
    path.unlink()
    assert fails("train", path, "--out", out).endswith("; write one with `mesascope config NAME`\n")
    assert not out.exists()


def test_foreign_folders_are_not_touched(tmp_path: Path, fails: Callable[..., str]) -> None:
    config, out = write_config(tmp_path / "config.json", TINY), tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("precious")
    (tmp_path / "file.txt").write_text("precious")
    before = contents(tmp_path)
    for name in ("thesis", "file.txt"):
        for command in (["train", config], ["reproduce", "fig4"], ["quickstart"]):
            for resume in ([], ["--resume"]):
                assert str(tmp_path / name) in fails(*command, "--out", tmp_path / name, *resume)
    assert contents(tmp_path) == before


def test_resume_with_another_configuration(tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["train", str(write_config(tmp_path / "one.json", TINY)), "--out", str(out)]) == 0
    before = contents(out)
    other = write_config(tmp_path / "other.json", varied(TINY, seed=1))
    assert "holds a run with another configuration" in fails("train", other, "--out", out, "--resume")
    assert contents(out) == before


def test_corrupted_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    config = write_config(tmp_path / "config.json", varied(HYBRID, steps=20, checkpoint_every=5))
    with monkeypatch.context() as patch:
        patch.setattr("mesascope.training.loop.TrainingState.draw", _interrupt_at(8))
        assert cli.main(["train", str(config), "--out", str(out)]) == cli.EXIT_INTERRUPTED
    path = out / "checkpoint.safetensors"
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], good[:-1] + bytes([good[-1] ^ 1]), b""):
        path.write_bytes(bad)
        message = fails("train", config, "--out", out, "--resume")
        assert f"{path}: corrupted checkpoint" in message
        assert "delete it to train from the start" in message
        assert path.read_bytes() == bad
    path.write_bytes(good)
    assert cli.main(["train", str(config), "--out", str(out), "--resume"]) == 0


def _interrupt_at(step: int) -> Callable[[Any], Any]:
    """`TrainingState.draw` that is interrupted from the keyboard at optimiser step `step`."""

    def draw(state: Any) -> Any:
        if state.step == step:
            raise KeyboardInterrupt
        return state.config.task.sample(state.config.batch_size, state.generator)

    return draw


def test_interrupts_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mesascope.training.loop.TrainingState.draw", _interrupt_at(3))
    config = write_config(tmp_path / "config.json", TINY)
    assert cli.main(["train", str(config), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == ("mesascope: interrupted; what was finished is kept, go on with --resume\n")


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    config = write_config(tmp_path / "config.json", TINY)
    monkeypatch.setattr(os, "fsync", no_space)
    for command in (["train", config], ["reproduce", "fig4"]):
        message = fails(*command, "--out", tmp_path / "out")
        assert "cannot be written (No space left on device)" in message
        assert "--resume" in message
    assert set(contents(tmp_path)) == {"config.json"}


def test_divergence(tmp_path: Path, fails: Callable[..., str]) -> None:
    config = write_config(tmp_path / "config.json", TINY, **{"schedule.rate": 1e12})
    message = fails("train", config, "--out", tmp_path / "out")
    assert "at learning rate 1e+12; try a smaller learning rate" in message


def test_reproduce_checks_numbers_first(tmp_path: Path, fails: Callable[..., str]) -> None:
    for option, expected in (("--seeds", "seeds: got 0"), ("--workers", "workers: got 0")):
        message = fails("reproduce", "fig4", "--out", tmp_path / "out", option, "0")
        assert message == f"mesascope: {expected}, but it must be at least 1\n"
    assert not (tmp_path / "out").exists()


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    found = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {"mesascope", "python", "torch", "threads", "softmax attention", "mesa attention"} <= set(found)
    errors = {name: float(value) for name, value in found.items() if "relative error" in name}
    assert len(errors) == 2
    assert all(0 < error < 1e-5 for error in errors.values()), errors


def test_unknown_options_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["reproduce", "fig4"], ["reproduce", "fig4", "--out", "x", "--profile", "fast"], ["dance"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_help_explains_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for command in ("quickstart", "reproduce", "list", "document", "train", "config", "doctor", "bench"):
        assert command in text


def test_bench_train_is_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mesascope.benchmarks import train as benchmark

    called = {}

    def measure(rounds: int, threads: int) -> tuple[MeasuredClaim, ...]:
        called.update(rounds=rounds, threads=threads)
        return (benchmark.STEP_RATIO.measure(0.5),)

    monkeypatch.setattr(benchmark, "bench_training", measure)
    assert cli.main(["bench", "train", "--rounds", "3", "--threads", "1", "--json", str(tmp_path / "bench.json")]) == 0
    assert called == {"rounds": 3, "threads": 1}
    assert json.loads((tmp_path / "bench.json").read_text())["claims"][0]["measured"] == 0.5


def test_bench_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, figure = tmp_path / "bench.json", tmp_path / "speed.svg"
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--json", str(stored), "--figure", str(figure)]
    assert cli.main(["bench", "attention", *arguments]) == 0
    printed, result = capsys.readouterr().out, json.loads(stored.read_text())
    assert result["claims"] == []
    assert {(record["heads"], record["time"], record["dim"]) for record in result["records"]} == {
        (8, 16, 8),
        (4, 30, 5),
    }
    for record in result["records"]:
        assert record["method"] in printed
    for line in result["left_out"]:
        assert line in printed
    assert "sequence length T (tokens)" in _svg_texts(figure)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "speed.svg"]


def _svg_texts(path: Path) -> list[str]:
    """Texts are drawn as paths; matplotlib leaves each as a comment."""
    return [line.strip()[5:-4] for line in path.read_text().splitlines() if line.strip().startswith("<!-- ")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--rounds", "0"], "rounds: got 0, but it must be at least 1"),
        (["--threads", "0"], "threads: got 0, but it must be at least 1"),
        (["--figure", "speed.pdf"], "figure: got 'speed.pdf', but it must be a file that ends in .png or .svg"),
        (["--json", "."], "json: got '.', but it must be a file, not a folder"),
        (["--figure", "."], "figure: got '.', but it must be a file, not a folder"),
    ],
)
def test_bench_attention_checks_its_options_first(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str], options: list[str], expected: str
) -> None:
    monkeypatch.setattr("mesascope.benchmarks.attention.matmul_gflops", lambda size: pytest.fail("measured too early"))
    assert fails("bench", "attention", *options) == f"mesascope: {expected}\n"


def test_bench_dense_checks_its_options_first(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str]) -> None:
    monkeypatch.setattr("mesascope.benchmarks.dense.bench_dense", lambda *_: pytest.fail("measured too early"))
    assert fails("bench", "dense", "--json", ".") == "mesascope: json: got '.', but it must be a file, not a folder\n"


def test_bench_commands_have_options_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["bench"],
        ["bench", "dance"],
        ["bench", "train", "--quick"],
        ["bench", "train", "--figure", "a"],
        ["bench", "dense", "--quick"],
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()
