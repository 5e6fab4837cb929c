"""Execution engines: train many configurations, in this process or in several.

Every training is single-process and names its own number of threads, so the number of workers changes when a run
finishes but not one bit of it.
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Protocol, runtime_checkable

from mesascope.errors import MesascopeError, WorkerError, require
from mesascope.runs.store import RunStore
from mesascope.training.config import TrainingConfig
from mesascope.training.loop import Progress, train

OnProgress = Callable[[str, Progress], None]
"""Receives the label of a training and where it stands."""

_REPORT_EVERY = 10


@runtime_checkable
class Reports(Protocol):
    """The queue that carries labels and progress from worker processes."""

    def put(self, obj: tuple[str, Progress]) -> None: ...

    def get_nowait(self) -> tuple[str, Progress]: ...


def train_all(
    configs: Mapping[str, TrainingConfig], store: RunStore, workers: int, on_progress: OnProgress | None = None
) -> None:
    """Train every configuration that is not finished yet, in their order.

    Arguments as `train_each`.

    Raises:
        Exception: the first error of a training. The other trainings are finished before it is raised.
        WorkerError: as `train_each`.
    """
    for error in train_each(configs, store, workers, on_progress).values():
        raise error


def train_each(
    configs: Mapping[str, TrainingConfig], store: RunStore, workers: int, on_progress: OnProgress | None = None
) -> dict[str, Exception]:
    """Train every configuration that is not finished yet, in their order; one that fails leaves the others alone.

    Args:
        configs: trainings by label. The time is shortest if the longest come first.
        store: where their run folders lie.
        workers: processes at once; 1 trains in this process.
        on_progress: called every few optimiser steps.

    Returns:
        The error of every training that failed, by label.

    Raises:
        WorkerError: a process was killed; finished trainings and all checkpoints are kept.
    """
    require(workers >= 1, "workers", workers, "at least 1")
    pending = {label: config for label, config in configs.items() if not store.is_finished(config)}
    if workers == 1 or len(pending) <= 1:
        return _train_here(pending, store, on_progress)
    return _train_in_processes(pending, store, workers, on_progress)


def _train_here(
    configs: Mapping[str, TrainingConfig], store: RunStore, on_progress: OnProgress | None
) -> dict[str, Exception]:
    errors: dict[str, Exception] = {}
    for label, config in configs.items():
        try:
            train(config, store.folder(config), _labelled(label, on_progress))
        except Exception as error:
            errors[label] = _with_label(label, error)
    return errors


def _train_in_processes(
    configs: Mapping[str, TrainingConfig], store: RunStore, workers: int, on_progress: OnProgress | None
) -> dict[str, Exception]:
    # spawned, not forked: a fork copies the locks of torch's thread pool in whatever state they are
    context = multiprocessing.get_context("spawn")
    reports: Reports = context.Queue()
    stop = context.Event()
    errors: dict[str, Exception] = {}
    with ProcessPoolExecutor(min(workers, len(configs)), context, _start_worker, (reports, stop)) as pool:
        futures: dict[Future[None], str] = {
            pool.submit(_train_in_worker, label, config, store.folder(config)): label
            for label, config in configs.items()
        }
        unfinished = set(futures)
        try:
            while unfinished:
                done, unfinished = wait(unfinished, timeout=0.2, return_when=FIRST_COMPLETED)
                _forward(reports, on_progress)
                for future in done:
                    error = future.exception()
                    if isinstance(error, Exception) and not isinstance(error, BrokenProcessPool):
                        errors[futures[future]] = _with_label(futures[future], error)
                    elif error is not None:
                        raise error
        except BaseException as error:
            # otherwise leaving the pool would wait until every training is finished
            stop.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise WorkerError(
                    "a training process was killed from outside, perhaps for lack of memory; what was finished and all "
                    "checkpoints are kept. Go on with --resume and fewer --workers"
                ) from error
            raise
    _forward(reports, on_progress)
    return {label: errors[label] for label in configs if label in errors}


def _labelled(label: str, on_progress: OnProgress | None) -> Callable[[Progress], None] | None:
    return None if on_progress is None else lambda progress: on_progress(label, progress)


def _with_label(label: str, error: Exception) -> Exception:
    if isinstance(error, MesascopeError):
        return type(error)(f"{label}: {error}")
    error.add_note(f"while training: {label}")
    return error


_reports: Reports
_stop: Event


def _start_worker(reports: Reports, stop: Event) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    # an interrupt from the keyboard reaches every process of the terminal; the parent passes it on as `stop`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the parent was killed: another may go on in its store."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # files are replaced as a whole, so there is nothing to clean up
        os._exit(1)


class _StoppedError(Exception):
    """The parent was interrupted; nobody waits for this training."""


def _train_in_worker(label: str, config: TrainingConfig, folder: Path) -> None:
    def stop_if_told() -> None:
        if _stop.is_set():
            raise _StoppedError(label)

    def report(progress: Progress) -> None:
        stop_if_told()
        if progress.step % _REPORT_EVERY == 0 or progress.step == progress.steps:
            _reports.put((label, progress))

    # the pool hands out one training more than it can run, which is not taken back when the parent stops
    stop_if_told()
    train(config, folder, report)


def _forward(reports: Reports, on_progress: OnProgress | None) -> None:
    while True:
        try:
            label, progress = reports.get_nowait()
        except queue.Empty:
            return
        if on_progress is not None:
            on_progress(label, progress)
