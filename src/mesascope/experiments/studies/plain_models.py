"""The models that figures on plain tokens share: which are trained, with how many seeds, and what is reduced."""

from mesascope.experiments.base import Profile
from mesascope.experiments.studies.replicates import Replicates
from mesascope.experiments.studies.trainings import QUICK_REDUCTIONS, Architecture, Setting, plain_training


def plain_models(setting: Setting, architecture: Architecture, profile: Profile, seeds: int | None) -> Replicates:
    """One training per seed: by default one in the quick profile and five in the paper's."""
    name = architecture if setting == "linear" else f"{setting} {architecture}"
    count = seeds or (1 if profile == "quick" else 5)
    return Replicates.of(name, lambda seed: plain_training(setting, architecture, profile, seed), count)


def plain_reductions(profile: Profile) -> tuple[str, ...]:
    """How the profile of these models falls short of the paper."""
    return () if profile == "paper" else (*QUICK_REDUCTIONS, "One seed instead of five.")
