"""One file per result of the paper. A file here that defines `EXPERIMENT` can be reproduced by its name."""

import importlib
import pkgutil

from mesascope.errors import InputError, suggest
from mesascope.experiments.base import Experiment
from mesascope.report import natural_order


def experiments() -> dict[str, Experiment]:
    """All experiments by name, found by listing this package."""
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    found = [module.EXPERIMENT for module in modules if hasattr(module, "EXPERIMENT")]
    return {experiment.name: experiment for experiment in found}


def figures() -> list[Experiment]:
    """Every experiment but the quickstart, which is a tour through parts of others, in the order of their numbers."""
    found = experiments()
    return [found[name] for name in sorted(found, key=natural_order) if name != "quickstart"]


def experiment(name: str) -> Experiment:
    """The experiment called `name`.

    Raises:
        InputError: there is none; the message suggests the closest.
    """
    known = experiments()
    if name not in known:
        raise InputError(f"experiment: got {name!r}; {suggest(name, known)}")
    return known[name]
