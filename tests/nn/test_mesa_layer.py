"""Mesa layers with every option: what they compute, that it can be learned, and one token at a time."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mesascope.nn import (
    DPFP,
    ForgetGate,
    Mesa,
    MesaAttention,
    MixedKey,
    PreviousKey,
    Softmax,
    Transformer,
    TransformerConfig,
    UnitNorm,
    WriteGate,
)
from mesascope.ops import mesa_attention

from .mesa_layers import HEADS, KEY, MESAS, WIDTH, by_hand, inputs, layer


@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_output_by_hand(name: str) -> None:
    attention, x = layer(name), inputs()
    np.testing.assert_allclose(attention(x), by_hand(attention.state_dict(), MESAS[name], x), rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_two_tokens_with_pen_and_paper() -> None:
    """One head, keys of size 1, previous key, forgetting: o_2 = beta v_2 k_1 q_2 / (beta k_1^2 + ridge)."""
    attention = MesaAttention(1, 1, 1, Mesa(0.5, key_shift=PreviousKey(), forget=ForgetGate(), write=WriteGate()))
    for weight, value in ((attention.W_Q, 2.0), (attention.W_K, 3.0), (attention.W_V, 5.0), (attention.P, 7.0)):
        weight.fill_(value)
    x = torch.tensor([[[1.0], [-1.0]]])
    beta, k, q, v = 0.5, 3.0, -2.0, -5.0
    assert attention(x)[0, :, 0].tolist() == pytest.approx([0.0, 7 * beta * v * k * q / (beta * k**2 + 0.5)])


@torch.no_grad()
def test_the_op_gets_the_ridge_of_each_coordinate() -> None:
    attention, x = layer("ridge per coordinate"), inputs()
    q, k, v = attention.project(x)
    assert attention.ridge.shape == (HEADS, KEY)
    mixed = mesa_attention(q, k, v, attention.ridge[None], backend="reference")
    torch.testing.assert_close(attention(x), mixed.flatten(-2) @ attention.P.T, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_batch_as_large_as_the_number_of_heads() -> None:
    """[B, H] and [H, D] look the same then."""
    attention, x = MesaAttention(6, 3, 3, Mesa(ridge_per="coordinate")).double(), inputs(3)
    torch.testing.assert_close(attention(x)[:1], attention(x[:1]))


@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_map_mixes_the_values(name: str) -> None:
    attention, x = layer(name), inputs()
    weights = attention.attention_map(x)
    assert weights.shape == (2, HEADS, 7, 7)
    assert torch.equal(weights, weights.tril())
    assert bool((weights < 0).any())
    assert bool((weights > 0).any())
    mixed = torch.einsum("bhij,bjhd->bihd", weights, attention.project(x)[2])
    torch.testing.assert_close(mixed.flatten(-2) @ attention.P.T, attention(x), rtol=1e-9, atol=1e-11)
    recorded: dict[str, Tensor] = {}
    assert torch.equal(attention(x, None, recorded.__setitem__), attention(x))
    assert torch.equal(recorded["pattern"], weights)
    assert list(recorded) == ["q", "k", "v", "pattern"]
    if not attention.gated:
        assert torch.equal(attention.pattern(*attention.project(x)[:2]), weights)


@pytest.mark.parametrize("name", MESAS)
def test_gradients_reach_every_parameter(name: str) -> None:
    attention = layer(name, position_dim=2)
    positions = inputs(1, 7, size=2, seed=3)[0]
    attention(inputs(), positions).square().sum().backward()
    for parameter_name, parameter in attention.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool((parameter.grad != 0).any()), parameter_name


@pytest.mark.parametrize("name", ["everything", "everything, initial"])
def test_gradients_by_finite_differences(name: str) -> None:
    attention, x = layer(name), inputs(1, 4)
    names = [parameter_name for parameter_name, _ in attention.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in attention.parameters()]

    def output(x: Tensor, *parameters: Tensor) -> Any:
        return torch.func.functional_call(attention, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(output, (x.requires_grad_(), *values), fast_mode=True)


@pytest.mark.parametrize("raw", [-math.inf, -6e4, -200.0, -20.0, 0.0, 50.0, 6e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("smallest", [0.0, 0.25])
def test_the_ridge_is_positive_whatever_its_parameter(raw: float, dtype: torch.dtype, smallest: float) -> None:
    attention = MesaAttention(4, 2, 2, Mesa(smallest_ridge=smallest)).to(dtype)
    with torch.no_grad():
        attention.raw_ridge.fill_(raw)
    ridge = attention.ridge
    assert bool((ridge > 0).all())
    assert bool((ridge >= smallest).all())
    assert bool((1 / ridge).isfinite().all())


@pytest.mark.parametrize("mesa", [Mesa(1e-6), Mesa(0.3), Mesa(1e6), Mesa(0.3, smallest_ridge=0.25)], ids=str)
def test_the_initial_ridge_is_the_one_asked_for(mesa: Mesa) -> None:
    for per, shape in (("head", (2,)), ("coordinate", (2, 3))):
        ridge = MesaAttention(4, 2, 3, dataclasses.replace(mesa, ridge_per=per)).ridge
        torch.testing.assert_close(ridge, torch.full(shape, mesa.initial_ridge), rtol=1e-5, atol=0)


@torch.no_grad()
def test_initial_gates(generator: torch.Generator) -> None:
    attention = MesaAttention(
        4, 2, 3, Mesa(forget=ForgetGate(0.98), write=WriteGate(2.0), key_shift=MixedKey(0.8)), generator=generator
    )
    x = torch.randn(2, 5, 4, generator=generator)
    taken = attention._inputs(attention._projections(x, None), x, None)
    torch.testing.assert_close(taken.log_forget, torch.full((2, 5, 2), math.log(0.98)))
    torch.testing.assert_close(taken.write, torch.ones(2, 5, 2))
    assert attention.key_shift is not None
    torch.testing.assert_close(attention.key_shift.share, torch.full((2,), 0.8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["everything", "everything, initial"])
@torch.no_grad()
def test_lower_precision(name: str, dtype: torch.dtype) -> None:
    """Half precision rounds the projections; the regression, its state and its gates keep float32."""
    attention, x = layer(name), inputs()
    exact = attention(x)
    attention.to(dtype)
    output, state = attention(x.to(dtype), return_state=True)
    stepped, _ = attention.step(x[:, 0].to(dtype), attention.initial_state(2))
    assert (output.dtype, stepped.dtype, state.regression.matrix.dtype) == (dtype, dtype, torch.float32)
    error = float((output.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())
    assert error < 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(stepped, output[:, 0], rtol=4 * torch.finfo(dtype).eps, atol=1e-2 * float(exact.std()))


def test_autocast() -> None:
    attention, x = layer("everything").float(), inputs().float()
    with torch.autocast("cpu", torch.bfloat16):
        output, state = attention(x, return_state=True)
        stepped, _ = attention.step(x[:, 0], attention.initial_state(2))
        attention(x, state=state)
    torch.testing.assert_close(output.float(), attention(x), rtol=0.05, atol=0.05)
    torch.testing.assert_close(stepped.float(), attention(x)[:, 0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (2, 1)], ids=str)
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_few_tokens(name: str, shape: tuple[int, int]) -> None:
    attention = layer(name)
    output, state = attention(inputs(*shape), return_state=True)
    assert output.shape == (*shape, WIDTH)
    torch.testing.assert_close(attention(inputs(shape[0], 3), state=state)[:, :0], output[:, :0])


@torch.no_grad()
def test_positions_as_in_the_other_layers() -> None:
    """They enter queries and keys but not values, and gates neither."""
    attention, x = layer("everything", position_dim=2), inputs()
    near, far = (torch.full((7, 2), value, dtype=torch.float64) for value in (0.1, 2.0))
    assert torch.equal(attention.project(x, near)[2], attention.project(x, far)[2])
    assert not torch.allclose(attention(x, near), attention(x, far))
    zero = attention(x, 0 * near)
    attention.W_Q, attention.W_K = (torch.nn.Parameter(w[:, :WIDTH]) for w in (attention.W_Q, attention.W_K))
    attention.position_dim = 0
    torch.testing.assert_close(attention(x), zero)


def test_initial_weights_come_from_the_generator() -> None:
    def weights(seed: int) -> list[Tensor]:
        return list(MesaAttention(4, 2, 3, generator=torch.Generator().manual_seed(seed)).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert not torch.equal(weights(1)[0], weights(2)[0])
    torch.manual_seed(3)
    first = MesaAttention(4, 2, 3).W_Q
    torch.manual_seed(3)
    assert torch.equal(first, MesaAttention(4, 2, 3).W_Q)


GATED = TransformerConfig(3, 3, (Softmax(), MESAS["everything"]), 2, 4, embed_dim=5, position_dim=5, init_std=0.02)


def test_inside_a_transformer() -> None:
    """Ridges and biases start where the configuration says, matrices at random; torch's random state is not touched."""
    before = torch.get_rng_state()
    model = Transformer(GATED)
    assert torch.equal(torch.get_rng_state(), before)
    attention = model.blocks[1].attn
    assert isinstance(attention, MesaAttention)
    torch.testing.assert_close(attention.ridge.detach(), torch.full((2, 16), 1.5))
    assert attention.forget_gate is not None
    torch.testing.assert_close(attention.forget_gate.b.detach().sigmoid(), torch.full((2,), 0.9))
    assert float(attention.forget_gate.W.detach().std()) == pytest.approx(0.02, rel=0.6)
    tokens = inputs(2, 6, size=3).float()
    result = model.run(tokens, ["*"])
    assert torch.equal(result.predictions, model(tokens))
    assert result.activations["blocks.1.attn.k"].shape == (2, 6, 2, 16)
    result.predictions.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_normalising_in_the_transformer_comes_last() -> None:
    mesa = Mesa(features=(DPFP(2),))
    config = dataclasses.replace(GATED, attention=(mesa,), qk_norm=UnitNorm())
    attention = Transformer(config).blocks[0].attn
    assert attention.features == (DPFP(2), UnitNorm())
