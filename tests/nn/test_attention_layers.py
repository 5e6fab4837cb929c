"""Attention layers: what their weights mean, for every kind."""

import math

import pytest
import torch
from torch import Tensor

from mesascope.nn import Attention, LayerNorm, Linear, LinearAttention, Mesa, MesaAttention, Norm, Softmax, UnitNorm
from mesascope.nn.attention import build_attention

KINDS = {"linear": Linear(), "softmax": Softmax(), "mesa": Mesa(0.7)}
WIDTH, HEADS, KEY = 6, 3, 4


def layer(kind: str, *, position_dim: int = 0, qk_norm: Norm | None = None, seed: int = 0) -> Attention:
    built = build_attention(KINDS[kind], WIDTH, HEADS, KEY, position_dim=position_dim, qk_norm=qk_norm).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return built


def inputs(batch: int = 2, time: int = 5) -> Tensor:
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@torch.no_grad()
def test_products_alone_give_linear_attention() -> None:
    """o_t = sum_h PV_h sum_{t' <= t} x_t' (x_t'^T QK_h x_t): the layer depends on its weights through products only."""
    attention, x = layer("linear"), inputs()
    expected = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            for h in range(HEADS):
                for past in range(t + 1):
                    strength = x[b, past] @ attention.QK[h] @ x[b, t]
                    expected[b, t] += strength * (attention.PV[h] @ x[b, past])
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-13)


def test_products_have_the_shape_of_the_input() -> None:
    attention = layer("linear", position_dim=2)
    assert attention.QK.shape == (HEADS, WIDTH + 2, WIDTH + 2)
    assert attention.PV.shape == (HEADS, WIDTH, WIDTH)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_heads_add_up_and_own_contiguous_rows(kind: str) -> None:
    """A layer with only head h's rows of W_Q, W_K, W_V and columns of P is that head's share of the output."""
    attention, x = layer(kind), inputs()
    total = torch.zeros_like(x)
    for h in range(HEADS):
        rows = slice(h * KEY, (h + 1) * KEY)
        alone = build_attention(KINDS[kind], WIDTH, 1, KEY, position_dim=0, qk_norm=None).double()
        for name in ("W_Q", "W_K", "W_V"):
            getattr(alone, name).copy_(getattr(attention, name)[rows])
        alone.P.copy_(attention.P[:, rows])
        if isinstance(attention, MesaAttention) and isinstance(alone, MesaAttention):
            alone.raw_ridge.copy_(attention.raw_ridge[h : h + 1])
        total += alone(x)
    torch.testing.assert_close(attention(x), total, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_pattern_mixes_the_values_into_the_output(kind: str) -> None:
    attention, x = layer(kind), inputs()
    q, k, v = attention.project(x)
    assert torch.equal(attention.attention_map(x), attention.pattern(q, k))
    mixed = torch.einsum("bhij,bjhd->bihd", attention.attention_map(x), v)
    torch.testing.assert_close(mixed.flatten(-2) @ attention.P.T, attention(x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_causality(kind: str) -> None:
    attention, x = layer(kind, position_dim=2, qk_norm=UnitNorm()), inputs()
    positions = torch.randn(5, 2, dtype=torch.float64)
    changed = torch.cat([x[:, :3], inputs(2, 9)[:, 7:]], dim=1)
    before, after = attention(x, positions), attention(changed, positions)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=1e-12, atol=1e-13)
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("kind", KINDS)
def test_positions_enter_queries_and_keys_but_not_values(kind: str) -> None:
    attention, x = layer(kind, position_dim=2), inputs()
    first, second = (torch.full((5, 2), value, dtype=torch.float64) for value in (0.5, -1.0))
    (q, k, v), (q2, k2, v2) = attention.project(x, first), attention.project(x, second)
    assert torch.equal(v, v2)
    shift = first[0] - second[0]
    for weight, here, there in ((attention.W_Q, q, q2), (attention.W_K, k, k2)):
        expected = (weight[:, WIDTH:] @ shift).unflatten(0, (HEADS, KEY))
        torch.testing.assert_close(here - there, expected.expand_as(here))


@pytest.mark.parametrize(("norm", "length"), [(UnitNorm(), 1.0), (LayerNorm(1e-20), math.sqrt(KEY))])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_normalised_queries_and_keys(kind: str, norm: Norm, length: float) -> None:
    """Keys are what is regressed on: with normalisation their scale changes nothing, that of the values does."""
    attention, x = layer(kind, qk_norm=norm), inputs()
    q, k, _ = attention.project(x)
    for operand in (q, k):
        torch.testing.assert_close(operand.norm(dim=-1), torch.full((2, 5, HEADS), length, dtype=torch.float64))
    output = attention(x)
    attention.W_K *= 3
    attention.W_Q *= 0.2
    torch.testing.assert_close(attention(x), output, rtol=1e-11, atol=1e-12)
    attention.W_V *= 3
    torch.testing.assert_close(attention(x), 3 * output, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_normalisation_the_scale_of_keys_matters(kind: str) -> None:
    attention, x = layer(kind), inputs()
    output = attention(x)
    attention.W_K *= 3
    assert not torch.allclose(attention(x), output)


@pytest.mark.parametrize("initial", [1e-6, 0.3, 1.0, 30.0, 1e3, 1e6])
def test_the_initial_ridge_is_the_one_asked_for(initial: float) -> None:
    ridge = MesaAttention(4, 2, 2, Mesa(initial)).ridge
    assert ridge.tolist() == pytest.approx([initial, initial], rel=1e-5)
    assert bool((ridge > 0).all())


def test_the_ridge_is_learned_per_head() -> None:
    attention = layer("mesa")
    assert isinstance(attention, MesaAttention)
    (gradient,) = torch.autograd.grad(attention(inputs()).square().sum(), attention.raw_ridge)
    assert gradient.shape == (HEADS,)
    assert bool((gradient != 0).all())


def test_names_of_parameters() -> None:
    """Those of stored weights, in the order in which their initial values are drawn."""
    assert [name for name, _ in LinearAttention(4, 2, 2).named_parameters()] == ["W_Q", "W_K", "W_V", "P"]
    assert [name for name, _ in MesaAttention(4, 2, 2).named_parameters()] == ["W_Q", "W_K", "W_V", "P", "raw_ridge"]
