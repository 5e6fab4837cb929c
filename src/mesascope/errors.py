"""Errors a user can act on. The command line prints each of them as one line and exits with status 2."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class MesascopeError(Exception):
    """Base of every error that states what was required, what arrived and what to try."""


class InputError(MesascopeError, ValueError):
    """An argument, configuration field or option has a value that is not allowed."""


class CheckpointError(MesascopeError, RuntimeError):
    """A stored file cannot be read back or does not belong to the run it lies in."""


class StorageError(MesascopeError, OSError):
    """A file could not be written. What was there before is intact."""


class WorkerError(MesascopeError, RuntimeError):
    """A process that trained was killed. What it had saved is intact."""


class ExperimentError(MesascopeError, RuntimeError):
    """Some of several experiments could not be finished. The reports of the others are complete."""


class DivergenceError(MesascopeError, RuntimeError):
    """Training produced a loss that is not finite."""


def require(condition: bool, argument: str, value: Any, allowed: str) -> None:
    """Raise `InputError` naming `argument`, its `value` and what is `allowed`, unless `condition` holds."""
    if not condition:
        raise InputError(f"{argument}: got {value!r}, but it must be {allowed}")


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt `name`: the closest of the `known` names, or all of them."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
