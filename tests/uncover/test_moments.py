import numpy as np
import pytest

from mesascope.uncover.moments import RunningMoments


@pytest.mark.parametrize("sizes", [(7,), (1, 1), (3, 1, 5)])
def test_equal_to_all_sequences_at_once(sizes):
    # an offset of 1e6 leaves no digits to a difference of large sums
    values = 1e6 + np.random.default_rng(0).normal(size=(sum(sizes), 2, 3))
    moments = RunningMoments()
    for batch in np.split(values, np.cumsum(sizes)[:-1]):
        moments.add(batch)
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-14)
    np.testing.assert_allclose(moments.deviation, values.std(0, ddof=1), rtol=1e-8)


def test_the_spread_of_one_sequence_is_unknown():
    moments = RunningMoments()
    moments.add(np.ones((1, 4)))
    assert np.isnan(moments.deviation).all()
