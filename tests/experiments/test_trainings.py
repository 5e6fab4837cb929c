from dataclasses import fields

import pytest

from mesascope.experiments.studies.trainings import (
    constructed_training,
    few_shot_training,
    linearisation_training,
    plain_training,
    two_softmax_training,
)
from mesascope.nn import Transformer
from mesascope.training.config import TrainingConfig
from mesascope.training.presets import paper_trainings

PLAIN = [
    ("linear", "softmax-7", "softmax-7"),
    ("linear", "softmax-3", "softmax-3"),
    ("linear", "hybrid", "hybrid-mesa"),
    ("linear", "full-mesa", "full-mesa"),
    ("partial", "softmax-7", "partial-softmax-7"),
    ("partial", "hybrid", "partial-hybrid"),
    ("nonlinear", "softmax-7", "nonlinear-softmax-7"),
    ("nonlinear", "hybrid", "nonlinear-hybrid"),
]


def differences(first: TrainingConfig, second: TrainingConfig) -> set[str]:
    return {field.name for field in fields(first) if getattr(first, field.name) != getattr(second, field.name)}


@pytest.mark.parametrize(("setting", "architecture", "name"), PLAIN)
def test_the_paper_profile_is_that_of_the_tables_with_weights_kept(setting, architecture, name):
    config = plain_training(setting, architecture, "paper", seed=3)

    assert differences(config, paper_trainings()[name]) == {"seed", "snapshot_every"}


@pytest.mark.parametrize(("setting", "architecture", "name"), PLAIN)
def test_the_quick_profile_keeps_task_and_model(setting, architecture, name):
    config = plain_training(setting, architecture, "quick")

    assert config.task == paper_trainings()[name].task
    assert config.model == paper_trainings()[name].model
    assert config.steps % config.snapshot_every == 0


def test_contexts_of_few_shot_training_fit_sixty_pairs_in_the_paper_profile():
    assert few_shot_training("softmax-7", "paper").task.length == 224
    assert few_shot_training("hybrid", "quick").task.length >= 120


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_linearisation_has_a_context_of_four_times_the_dimension(profile):
    config = linearisation_training(6, profile)

    assert (config.task.n_s, config.task.length, config.model.key_dim, config.model.embed_dim) == (6, 24, 12, 24)


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_two_softmax_layers_can_be_built(profile):
    config = two_softmax_training(profile)

    assert Transformer(config.model).config.num_heads == 1
    assert config.task.length == 80


@pytest.mark.parametrize("dynamics", ["contracting", "fixed teacher"])
@pytest.mark.parametrize("layers", [1, 6, "mesa"])
def test_other_dynamics_differ_from_the_default_task_in_their_transition(dynamics, layers):
    quick, paper = (constructed_training(dynamics, layers, profile) for profile in ("quick", "paper"))

    assert quick.task == paper.task
    assert quick.model == paper.model
    assert paper.steps == 10_000
