"""Progress of trainings on the terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from mesascope.training.loop import Progress


class TrainingDisplay:
    """Shows label, steps, loss, steps per second and time left of each training; plain lines when not a terminal.

    Use as a context manager; call it with the label and progress of a training.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._quarters: dict[str, int] = {}
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} steps/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "TrainingDisplay":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, label: str, progress: Progress) -> None:
        if self._console.is_terminal:
            self._update_bar(label, progress)
        else:
            self._print_quarter(label, progress)

    def _update_bar(self, label: str, progress: Progress) -> None:
        if label not in self._tasks:
            self._tasks[label] = self._bars.add_task(label, total=progress.steps, loss=progress.loss, rate=0.0)
        self._bars.update(
            self._tasks[label], completed=progress.step, loss=progress.loss, rate=progress.steps_per_second
        )

    def _print_quarter(self, label: str, progress: Progress) -> None:
        quarter = 4 * progress.step // progress.steps
        if quarter > self._quarters.get(label, 0):
            self._quarters[label] = quarter
            left = (progress.steps - progress.step) / max(progress.steps_per_second, 1e-9)
            self._console.print(
                f"  {label}: step {progress.step} of {progress.steps}, loss {progress.loss:.4f}, "
                f"{progress.steps_per_second:.1f} steps/s, {left:.0f} s left",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
