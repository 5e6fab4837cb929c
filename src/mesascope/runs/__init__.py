"""Run folders, their index and the engines that fill them."""

from mesascope.runs.engine import train_all
from mesascope.runs.store import RunStore

__all__ = ["RunStore", "train_all"]
