"""Cosines of products against NumPy, and what must not matter to them."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.nn import LinearAttention, SoftmaxAttention
from mesascope.uncover import product_similarity

WIDTH = 5


def layer(kind, seed, **changes):
    sizes = {"width": WIDTH, "num_heads": 1, "key_dim": 4} | changes
    return kind(**sizes, generator=torch.Generator().manual_seed(seed)).double()


def inputs(seed=0):
    return torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights(module):
    return (getattr(module, name).detach().numpy() for name in ("W_Q", "W_K", "W_V", "P"))


def test_equals_correlations_of_what_the_products_do():
    first, second, x = layer(SoftmaxAttention, 1), layer(LinearAttention, 2), inputs()
    rows = x.reshape(-1, WIDTH).numpy()
    scores, outputs = [], []
    for module in (first, second):
        W_Q, W_K, W_V, P = weights(module)
        scores.append(np.array([[a @ W_K.T @ W_Q @ b for b in rows] for a in rows]))
        outputs.append(np.array([P @ W_V @ a for a in rows]))
    QK, PV = ((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) for a, b in (scores, outputs))
    found = product_similarity(first, second, x)
    assert pytest.approx(abs(QK), rel=1e-10) == found.QK
    assert pytest.approx(np.sign(QK) * PV, rel=1e-10) == found.PV


def test_sign_of_both_products_does_not_matter():
    first, second = layer(SoftmaxAttention, 1), layer(LinearAttention, 2)
    before = product_similarity(first, second, inputs())
    with torch.no_grad():
        second.W_Q.neg_()
        second.P.neg_()
    after = product_similarity(first, second, inputs())
    assert pytest.approx(before.PV, rel=1e-12) == after.PV
    assert pytest.approx(before.QK, rel=1e-12) == after.QK
    with torch.no_grad():
        second.P.neg_()
    assert pytest.approx(-before.PV, rel=1e-12) == product_similarity(first, second, inputs()).PV


def test_directions_that_no_input_has_do_not_matter():
    # inputs [0, s, s]: only the sum of the weights of the two copies acts
    s = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.cat([torch.zeros_like(s[..., :1]), s, s], dim=-1)
    first = layer(LinearAttention, 1)
    second = layer(LinearAttention, 1)
    with torch.no_grad():
        for weight in (second.W_Q, second.W_K, second.W_V):
            moved = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            weight[:, 1:3] += moved
            weight[:, 3:5] -= moved
            weight[:, 0] = 7.0
    found = product_similarity(first, second, tokens)
    assert pytest.approx(1.0, abs=1e-9) == found.QK
    assert pytest.approx(1.0, abs=1e-9) == found.PV
    assert product_similarity(first, second, inputs()).PV < 0.9


def test_errors_name_the_argument():
    one = layer(LinearAttention, 1)
    with pytest.raises(InputError, match=r"second\.num_heads: got 2, but it must be 1"):
        product_similarity(one, layer(LinearAttention, 1, num_heads=2), inputs())
    with pytest.raises(InputError, match=r"first\.position_dim: got 3, but it must be 0"):
        product_similarity(layer(LinearAttention, 1, position_dim=3), one, inputs())
    with pytest.raises(InputError, match=r"first\.width: got 6, but it must be 5"):
        product_similarity(layer(LinearAttention, 1, width=6), one, inputs())
