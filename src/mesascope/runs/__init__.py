"""Run folders, their index, the engines that fill them and how long that will take."""

from mesascope.runs.engine import train_all, train_each
from mesascope.runs.forecast import expected_seconds, makespan
from mesascope.runs.store import RunStore

__all__ = ["RunStore", "expected_seconds", "makespan", "train_all", "train_each"]
