from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import gradient_descent, proposition_1, ridge_regression
from mesascope.errors import InputError
from mesascope.nn import Transformer, TransformerConfig, UnitNorm
from mesascope.nn.architectures import constructed_linear
from mesascope.nn.config import Linear
from mesascope.uncover import compress, interpolate, weight_products

from .test_compression import random_model, random_tokens


@given(seed=st.integers(0, 2**32 - 1), weight=st.floats(0, 1))
def test_a_model_and_itself_give_itself(seed, weight):
    model = random_model(seed)
    tokens = 0.3 * random_tokens(seed, 3)
    torch.testing.assert_close(interpolate(model, model, weight)(tokens), model(tokens), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_products_are_averaged_head_by_head(weight):
    model_a, model_b = random_model(0), compress(random_model(1))
    mixed = interpolate(model_a, model_b, weight)
    assert mixed.config.key_dim == 5 + 12
    for a, b, actual in zip(*map(weight_products, (model_a, model_b, mixed)), strict=True):
        for name in ("QK", "PV"):
            expected = (1 - weight) * getattr(a, name) + weight * getattr(b, name)
            np.testing.assert_allclose(getattr(actual, name), expected, rtol=0, atol=1e-12)


def test_average_of_two_gradient_steps_is_a_gradient_step():
    # keys and queries agree, so only the step sizes, in PV, are averaged
    mixed = interpolate(proposition_1(2, 0.1, dtype=torch.float64), proposition_1(2, 0.3, dtype=torch.float64))
    tokens = random_tokens(0, 2)
    expected = proposition_1(2, 0.2, dtype=torch.float64)(tokens)
    torch.testing.assert_close(mixed(tokens), expected, rtol=0, atol=1e-14)


def test_factorisation_does_not_matter():
    model = random_model(3)
    other = random_model(3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for block in other.blocks:
            for head in range(4):
                own = slice(5 * head, 5 * head + 5)
                change = torch.randn(5, 5, generator=generator, dtype=torch.float64)
                block.attn.W_Q[own] = change @ block.attn.W_Q[own]
                block.attn.W_K[own] = torch.linalg.solve(change.T, block.attn.W_K[own])
    tokens = 0.3 * random_tokens(1, 3)
    torch.testing.assert_close(interpolate(model, other)(tokens), model(tokens), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("model_b", "message"),
    [
        (gradient_descent(2, [0.1, 0.1]), r"model_b.config.num_layers: got 2, but it must be 1, as in model_a"),
        (
            Transformer(constructed_linear(1, 2, activation_clip=None)),
            "model_b.config.num_heads: got 2, but it must be 1, as in model_a",
        ),
        (
            Transformer(constructed_linear(1, 2, num_heads=1)),
            "model_b.config.activation_clip: got 4.0, but it must be None, as in model_a",
        ),
        (proposition_1(3, 0.1), "model_b.config.token_dim: got 12, but it must be 8, as in model_a"),
        (
            proposition_1(2, 0.1, dtype=torch.float64),
            "model_b: got torch.float64, but it must be",
        ),
        (ridge_regression(2, 1.0), r"model_b.config.attention\[0\]: got Mesa"),
    ],
)
def test_models_must_match(model_b, message):
    with pytest.raises(InputError, match=message):
        interpolate(proposition_1(2, 0.1), model_b)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qk_norm": UnitNorm()}, r"model_a.config.qk_norm: got UnitNorm\(\), but it must be None: normalised queries"),
        ({"layer_norm": True}, "model_a.config.layer_norm: got True, but it must be False: LayerNorm"),
        ({"position_dim": 4}, "model_a.config.position_dim: got 4, but it must be None: position encodings"),
        ({"embed_dim": 6}, "model_a.config.embed_dim: got 6, but it must be None: an embedding"),
    ],
)
def test_parts_outside_the_products_are_named_with_the_reason(changes, message):
    config = TransformerConfig(token_dim=8, prediction_dim=2, attention=(Linear(),), num_heads=1, key_dim=2)
    with pytest.raises(InputError, match=message):
        interpolate(Transformer(replace(config, **changes)), proposition_1(2, 0.1))


def test_weight_must_be_a_share():
    model = proposition_1(2, 0.1)
    with pytest.raises(InputError, match=r"weight: got 1\.5, but it must be between 0 and 1"):
        interpolate(model, model, 1.5)
