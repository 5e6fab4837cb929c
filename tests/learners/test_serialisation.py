"""Learners with plain fields are configurations: their JSON reads back as the same learner."""

import json

import pytest

from mesascope.config import from_json, to_json
from mesascope.learners import GradientDescent, TrueTransition, Zero
from mesascope.predictor import Predictor

from .test_causality import LEARNING

MATRIX = GradientDescent((0.1,), ((1.0, 0.0), (0.5, 2.0)))


@pytest.mark.parametrize("learner", [Zero(), TrueTransition(), MATRIX, *LEARNING], ids=lambda learner: learner.name)
def test_json_reads_back_as_the_same_learner(learner: Predictor) -> None:
    assert isinstance(learner, Predictor)
    assert from_json(type(learner), json.loads(json.dumps(to_json(learner)))) == learner
