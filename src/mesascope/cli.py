"""The command line. Each command is a frozen dataclass: its fields are the options, its docstring the help."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from mesascope.benchmarks.commands import BenchAttention, BenchDense, BenchPrecision, BenchTrain
from mesascope.errors import ExperimentError, InputError, MesascopeError, StorageError, suggest

if TYPE_CHECKING:
    from mesascope.claims import MeasuredClaim
    from mesascope.experiments.base import Experiment

EXIT_UNFINISHED = 1
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130

_console = Console()


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Train one- and two-layer linear attention and a mesa layer, and show in a report which algorithm they learned.

    Takes about two minutes on two cores.
    """

    out: Path = Path("runs/quickstart")
    """Output folder; must be empty or absent, or hold this experiment when --resume is given."""
    resume: bool = False
    """Go on in an output folder that was interrupted, or make its report again."""
    workers: int = os.cpu_count() or 1
    """Trainings at once; each uses one thread. The results do not depend on it."""

    def run(self) -> None:
        from mesascope.experiments import experiment

        _execute(experiment("quickstart"), self.out, workers=self.workers, resume=self.resume, again=True)


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Reproduce figures of the paper: train what is missing, measure every claim, write the reports.

    One name writes its report into the output folder. Several names, or `all`, share their trainings, which are made
    first; each report then goes to OUT/NAME, and OUT/index.html and OUT/claims.json cover all of them. What will be
    trained, and how long that should take here, is printed first. The exit status is 0 when every report is written,
    whether its claims hold or not, 1 when an experiment could not be finished, 2 for input that cannot work and 130
    when interrupted.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Experiments, which `mesascope list` shows, or all."""
    out: Path
    """Output folder; must be empty or absent, or hold these experiments when --resume is given."""
    profile: Literal["quick", "paper"] = "quick"
    """quick: minutes on a laptop, its reductions printed; paper: the paper's settings and seeds, hours."""
    seeds: int | None = None
    """Number of seeds instead of the profile's own."""
    store: Path | None = None
    """Folder of trainings shared between experiments; by default OUT/runs."""
    resume: bool = False
    """Go on in an output folder that was interrupted; finished trainings and reports are kept."""
    again: bool = False
    """Measure again what is already reported in the output folder."""
    workers: int = os.cpu_count() or 1
    """Trainings at once; each uses one thread. The results do not depend on it."""

    def run(self) -> None:
        from mesascope.experiments import experiment, figures

        if not self.names:
            raise InputError("names: got none; give names of experiments (see `mesascope list`) or all")
        options = {name: getattr(self, name) for name in ("profile", "seeds", "store", "resume", "again", "workers")}
        if self.names == ("all",):
            _reproduce(figures(), self.out, **options)
        elif len(self.names) == 1:
            _execute(experiment(self.names[0]), self.out, **options)
        else:
            _reproduce([experiment(name) for name in self.names], self.out, **options)


@dataclasses.dataclass(frozen=True)
class List:
    """List the experiments that can be reproduced."""

    def run(self) -> None:
        from mesascope.experiments import experiment, figures

        for found in (experiment("quickstart"), *figures()):
            minutes = ", ".join(
                f"{profile} {found.plan(profile, None).expected_minutes:g} min" for profile in ("quick", "paper")
            )
            _print_line(f"{found.name}: {found.title} ({minutes})")


@dataclasses.dataclass(frozen=True)
class Document:
    """Keep results for version control and write the pages about them: JSON, Markdown and small images.

    Copies the `result.json` of every report in a folder to RESULTS/PROFILE/NAME.json and its figures, made smaller, to
    DOCS/images, then writes DOCS/NAME.md and DOCS/index.md from all of RESULTS. Explanations of claims that do not hold
    are written by hand in DOCS/why/CLAIM.md and become part of the pages.
    """

    runs: Annotated[Path | None, tyro.conf.Positional] = None
    """Output folder of `mesascope reproduce`; without it the pages are written again from what is in RESULTS."""
    results: Path = Path("results")
    """Folder of kept results."""
    docs: Path = Path("docs/results")
    """Folder of the pages."""

    def run(self) -> None:
        from mesascope.report import keep_results, write_documents

        kept = keep_results(self.runs, self.results, self.docs) if self.runs is not None else []
        pages = write_documents(self.results, self.docs)
        _print_line(f"{len(kept)} results kept in {self.results}; {len(pages)} pages in {self.docs}")


@dataclasses.dataclass(frozen=True)
class Config:
    """Print a complete training configuration of the paper as JSON, to save, edit and train."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """Name of the training; without it the names are listed."""

    def run(self) -> None:
        from mesascope.config import SCHEMA, to_json
        from mesascope.training.presets import paper_trainings

        known = paper_trainings()
        if not self.name:
            print("\n".join(known))
            return
        if self.name not in known:
            raise InputError(f"name: got {self.name!r}; {suggest(self.name, known)}")
        print(json.dumps({"schema": SCHEMA, "config": to_json(known[self.name])}, indent=2))


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one model from a configuration file, as printed by `mesascope config`."""

    config: Annotated[Path, tyro.conf.Positional]
    """JSON file of the configuration."""
    out: Path
    """Run folder; must be empty or absent, or hold this training when --resume is given."""
    resume: bool = False
    """Go on from the last checkpoint in the run folder."""

    def run(self) -> None:
        from mesascope.runs.display import TrainingDisplay
        from mesascope.training.loop import load_metrics, read_config, train

        config = read_config(self.config)
        _require_free(self.out, self.resume)
        with TrainingDisplay(_console) as display:
            train(config, self.out, lambda progress: display(self.out.name, progress))
        loss = load_metrics(self.out)[-1]["test_loss"]
        _print_line(f"test loss {loss:.4f} after {config.steps} steps; weights in {self.out}")


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Show versions, threads and which kernels are active, and check that they compute what they should."""

    def run(self) -> None:
        from mesascope.doctor import examine

        for line in examine():
            _print_line(line)


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure speed, as ratios against peers that run in the same process, and precision."""

    benchmark: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[BenchTrain, tyro.conf.subcommand("train")]
            | Annotated[BenchAttention, tyro.conf.subcommand("attention")]
            | Annotated[BenchPrecision, tyro.conf.subcommand("precision")]
            | Annotated[BenchDense, tyro.conf.subcommand("dense")]
        ]
    ]
    """What to measure."""

    def run(self) -> None:
        self.benchmark.run()


Command = (
    Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
    | Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Document, tyro.conf.subcommand("document")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Config, tyro.conf.subcommand("config")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status.

    0, also when claims do not hold; 1 when some of several experiments could not be finished; 2 for an error the user
    can act on; 130 when interrupted.
    """
    command = tyro.cli(Command, prog="mesascope", description=_DESCRIPTION, args=arguments)
    try:
        command.run()
    except ExperimentError as error:
        _fail(error)
        return EXIT_UNFINISHED
    except MesascopeError as error:
        return _fail(error)
    except OSError as error:
        return _fail(StorageError(f"{error.filename or 'file'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        print("mesascope: interrupted; what was finished is kept, go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    return 0


_DESCRIPTION = "Find out which learning algorithm a sequence model runs inside its forward pass."


def _fail(error: Exception) -> int:
    print(f"mesascope: {' '.join(str(error).split())}", file=sys.stderr)
    return EXIT_ERROR


def _execute(found: "Experiment", out: Path, **options: Any) -> None:
    from mesascope.experiments.execute import execute

    outcome = execute(found, out, console=_console, **options)
    _print_claims(outcome.claims)
    held = sum(claim.passed for claim in outcome.claims)
    _print_line(f"{held} of {len(outcome.claims)} claims hold; {outcome.seconds:.0f} s in all")
    _print_line(f"report: {outcome.page.resolve()}")


def _reproduce(found: "list[Experiment]", out: Path, **options: Any) -> None:
    from mesascope.experiments.collection import reproduce
    from mesascope.report import print_overview

    collected = reproduce(found, out, console=_console, **options)
    print_overview({name: outcome.claims for name, outcome in collected.outcomes.items()}, _console)
    _print_line(f"report: {collected.page.resolve()}")
    if collected.failures:
        failed = "; ".join(f"{name}: {reason}" for name, reason in collected.failures.items())
        raise ExperimentError(f"{len(collected.failures)} of {len(found)} experiments could not be finished: {failed}")


def _require_free(out: Path, resume: bool) -> None:
    """Raise `InputError` unless a training may use the run folder `out`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not resume:
        raise InputError(f"out: {out} is not empty; choose a new folder, or go on in it with --resume")
    if not (out / "config.json").exists():
        raise InputError(f"out: {out} is not empty and holds no training; choose a new folder")


def _print_line(text: str) -> None:
    """Print text as it is: a file name may hold brackets, and a line stays one line when it is piped."""
    _console.print(text, highlight=False, markup=False, soft_wrap=True)


def _print_claims(claims: "tuple[MeasuredClaim, ...]") -> None:
    from mesascope.report import print_claims

    print_claims(claims, _console)


if __name__ == "__main__":
    sys.exit(main())
