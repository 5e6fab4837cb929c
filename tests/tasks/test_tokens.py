"""Token schemes, entry by entry."""

import pytest
import torch

from mesascope.errors import InputError
from mesascope.tasks import ConstructedTokens, PlainTokens, TokenScheme, WindowTokens, shift_right

S = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0], [9.0, 10.0], [11.0, 12.0]]])
"""Two sequences of three observations of size 2."""


@pytest.mark.parametrize(
    ("scheme", "first_sequence"),
    [
        (PlainTokens(), [[1, 2], [3, 4], [5, 6]]),
        (ConstructedTokens(), [[0, 0, 1, 2, 1, 2, 0, 0], [0, 0, 3, 4, 3, 4, 1, 2], [0, 0, 5, 6, 5, 6, 3, 4]]),
        (ConstructedTokens(slots=3), [[0, 0, 1, 2, 0, 0], [0, 0, 3, 4, 1, 2], [0, 0, 5, 6, 3, 4]]),
        (
            ConstructedTokens(mask_copy=True),
            [[0, 0, 0, 0, 1, 2, 0, 0], [0, 0, 0, 0, 3, 4, 1, 2], [0, 0, 0, 0, 5, 6, 3, 4]],
        ),
        (WindowTokens(1), [[1, 2], [3, 4], [5, 6]]),
        (WindowTokens(2), [[1, 2, 0, 0], [3, 4, 1, 2], [5, 6, 3, 4]]),
        (WindowTokens(3), [[1, 2, 0, 0, 0, 0], [3, 4, 1, 2, 0, 0], [5, 6, 3, 4, 1, 2]]),
        (WindowTokens(5), [[1, 2, *[0] * 8], [3, 4, 1, 2, *[0] * 6], [5, 6, 3, 4, 1, 2, *[0] * 4]]),
    ],
    ids=str,
)
def test_tokens(scheme: TokenScheme, first_sequence: list[list[float]]) -> None:
    tokens = scheme(S)
    assert torch.equal(tokens[0], torch.tensor(first_sequence, dtype=torch.float32))
    assert tokens.shape == (2, 3, scheme.width(2))
    # the other sequence is 6 ahead wherever the first holds an observation
    assert torch.equal(tokens[1], tokens[0] + 6.0 * (tokens[0] != 0))


def test_shift_right() -> None:
    assert torch.equal(shift_right(S)[0], torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(shift_right(S[:, :1]), torch.zeros(2, 1, 2))


def test_settings_that_are_not_allowed() -> None:
    with pytest.raises(InputError, match="slots: got 5, but it must be 3 or 4"):
        ConstructedTokens(slots=5)
    with pytest.raises(InputError, match="mask_copy: got True, but it must be False when slots is 3"):
        ConstructedTokens(slots=3, mask_copy=True)
    with pytest.raises(InputError, match="window: got 0, but it must be at least 1"):
        WindowTokens(0)
