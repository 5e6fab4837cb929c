"""Bootstrap means and intervals against numpy and against the normal distribution."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.uncover.bootstrap import bootstrap_means, interval


def test_means_are_means_of_rows_drawn_with_replacement() -> None:
    values = torch.arange(5.0)[:, None] * torch.tensor([1.0, -2.0])
    means = bootstrap_means(values, torch.Generator().manual_seed(1), 7)
    drawn = torch.randint(5, (7, 5), generator=torch.Generator().manual_seed(1)).numpy()
    expected = np.array([values.double().numpy()[rows].mean(0) for rows in drawn])
    np.testing.assert_allclose(means, expected, rtol=1e-12)


def test_columns_are_resampled_together(generator: torch.Generator) -> None:
    values = torch.randn(40, 1, generator=generator)
    means = bootstrap_means(torch.cat([values, values + 3], dim=1), generator, 50)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], np.full(50, 3.0), rtol=1e-6)


def test_interval_of_a_normal_mean(generator: torch.Generator) -> None:
    values = torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    low, high = interval(bootstrap_means(values, generator, 4000), 0.9)
    error = values.std() / 2000**0.5
    assert float(high - values.mean()) == pytest.approx(1.645 * float(error), rel=0.06)
    assert float(values.mean() - low) == pytest.approx(1.645 * float(error), rel=0.06)


def test_bad_input_is_named(generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=r"values: got .*, but it must be at least one sequence"):
        bootstrap_means(torch.zeros(0, 2), generator)
    with pytest.raises(InputError, match="resamples: got 0, but it must be at least 1"):
        bootstrap_means(torch.zeros(1, 2), generator, 0)
    with pytest.raises(InputError, match=r"confidence: got 1\.0, but it must be between 0 and 1"):
        interval(torch.zeros(2, 2), 1.0)
