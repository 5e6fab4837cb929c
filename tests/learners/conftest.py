import json
from importlib.resources import files
from typing import Any

import pytest
import torch

from mesascope.tasks import Sequences, fully_observed_linear


def draw(task: Any, batch_size: int, seed: int) -> Sequences:
    return task.sample(batch_size, torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="session")
def tuning_sequences() -> Sequences:
    """20,000 sequences of the default task to tune on."""
    return draw(fully_observed_linear(), 20_000, 1)


@pytest.fixture(scope="session")
def test_sequences() -> Sequences:
    """20,000 other sequences of the default task to evaluate on."""
    return draw(fully_observed_linear(), 20_000, 2)


@pytest.fixture
def few() -> Sequences:
    """Seven sequences of length 30 of the default task: d = 10, both fewer and more pairs than regressors."""
    return draw(fully_observed_linear(10, 30), 7, 3)


@pytest.fixture(scope="session")
def official() -> dict[str, Any]:
    """Curves stored with the authors' demo, and a numpy check of them; see its "description" and "source"."""
    path = files("mesascope") / "experiments" / "data" / "official_demo.json"
    return dict(json.loads(path.read_text()))
