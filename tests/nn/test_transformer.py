"""The Transformer against an independent NumPy forward pass, and what `run` captures."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from called_kernels import CalledKernels
from mesascope.errors import InputError
from mesascope.nn import (
    LayerNorm,
    Linear,
    LinearAttention,
    Mesa,
    MesaAttention,
    Softmax,
    SoftmaxAttention,
    Transformer,
    TransformerConfig,
    UnitNorm,
    sinusoidal_positions,
)
from mesascope.ops import dense
from mesascope.ops.kernels import native_kernels
from mesascope.predictor import Predictor
from mesascope.tasks import fully_observed_linear
from oracles import transformer as oracle

FULL = TransformerConfig(
    token_dim=3,
    prediction_dim=3,
    attention=(Softmax(), Mesa(0.4), Linear()),
    num_heads=2,
    key_dim=4,
    embed_dim=5,
    mlp_dim=7,
    layer_norm=True,
    position_dim=5,
    init_std=0.4,
)
CONFIGS = {
    "full": FULL,
    "odd positions, normalised": dataclasses.replace(FULL, position_dim=3, qk_norm=UnitNorm()),
    "layer-normalised": dataclasses.replace(FULL, qk_norm=LayerNorm()),
    "no MLP": dataclasses.replace(FULL, mlp_dim=None),
    "no norm": dataclasses.replace(FULL, layer_norm=False, position_dim=None),
    "clipped": dataclasses.replace(FULL, activation_clip=0.3),
    "attention only": TransformerConfig(8, 2, (Linear(), Linear()), 2, 3, activation_clip=0.5, init_std=0.5),
    "mesa only": TransformerConfig(8, 2, (Mesa(),), 1, 8, init_std=0.5),
}

NORMS = {None: None, UnitNorm(): oracle.unit_norm, LayerNorm(): oracle.standardise}


def model(config: TransformerConfig, seed: int = 0) -> Transformer:
    """A float64 model whose norms and ridges have left their initial values."""
    built = Transformer(config, torch.Generator().manual_seed(seed)).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return built


def tokens(config: TransformerConfig, batch: int = 2, time: int = 6, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, time, config.token_dim, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_forward_pass(name: str) -> None:
    config = CONFIGS[name]
    transformer, x = model(config), tokens(config)
    kinds = [type(kind).__name__.lower() for kind in config.attention]
    expected = oracle.forward(
        {key: value.numpy() for key, value in transformer.state_dict().items()},
        x.numpy(),
        kinds,
        config.num_heads,
        position_dim=config.position_dim,
        qk_norm=NORMS[config.qk_norm],
        clip=config.activation_clip or np.inf,
    )
    predictions = transformer(x)
    assert predictions.shape == (2, 6, config.prediction_dim)
    np.testing.assert_allclose(predictions, expected[..., : config.prediction_dim], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_causality(name: str) -> None:
    config = CONFIGS[name]
    transformer, x, other = model(config), tokens(config), tokens(config, seed=6)
    for changed in (1, 3, 5):
        mixed = torch.cat([x[:, :changed], other[:, changed:]], dim=1)
        before, after = transformer(x), transformer(mixed)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-11, atol=1e-12)
        assert not torch.allclose(after[:, changed:], before[:, changed:])


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_captured_activations_are_consistent(name: str) -> None:
    config = CONFIGS[name]
    transformer, x = model(config), tokens(config)
    result = transformer.run(x, ["*"])
    assert set(result.activations) == set(transformer.activation_names())
    assert torch.equal(result.predictions, transformer(x))
    stream = result.activations["embed"]
    assert torch.equal(stream, x if transformer.embed is None else x @ transformer.embed.T)
    for layer, block in enumerate(transformer.blocks):
        part = {name: result.activations.get(f"blocks.{layer}.{name}") for name in (*PARTS, "resid_post")}
        assert torch.equal(part["attn.in"], block.attn_norm(stream))
        mixed = torch.einsum("bhij,bjhd->bihd", part["attn.pattern"], part["attn.v"])
        torch.testing.assert_close(part["attn.out"], mixed.flatten(-2) @ block.attn.P.T, rtol=1e-11, atol=1e-12)
        stream = stream + part["attn.out"]
        if config.mlp_dim is not None:
            stream = stream + part["mlp.out"]
        if config.activation_clip is not None:
            stream = stream.clamp(-config.activation_clip, config.activation_clip)
        torch.testing.assert_close(part["resid_post"], stream, rtol=1e-12, atol=1e-13)
    assert torch.equal(result.predictions, stream_to_prediction(transformer, part["resid_post"]))


PARTS = ("attn.in", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.out", "mlp.out")


def stream_to_prediction(transformer: Transformer, stream: Tensor | None) -> Tensor:
    assert stream is not None
    if transformer.unembed is None:
        return stream[..., : transformer.config.prediction_dim]
    return torch.nn.functional.linear(stream, transformer.unembed)


def test_activation_shapes() -> None:
    result = model(FULL).run(tokens(FULL), ["blocks.1.*"])
    shapes = {name.removeprefix("blocks.1."): tuple(value.shape) for name, value in result.activations.items()}
    heads = (2, 6, 2, 4)
    assert shapes == {
        "attn.in": (2, 6, 5),
        "attn.q": heads,
        "attn.k": heads,
        "attn.v": heads,
        "attn.pattern": (2, 2, 6, 6),
        "attn.out": (2, 6, 5),
        "mlp.out": (2, 6, 5),
        "resid_post": (2, 6, 5),
    }


def test_capture_takes_names_and_patterns() -> None:
    transformer, x = model(FULL), tokens(FULL)
    assert transformer.run(x).activations == {}
    assert list(transformer.run(x, ["embed"]).activations) == ["embed"]
    residuals = transformer.run(x, ["blocks.*.resid_post", "embed"]).activations
    assert list(residuals) == ["embed", *(f"blocks.{layer}.resid_post" for layer in range(3))]
    assert "blocks.0.mlp.out" not in model(CONFIGS["no MLP"]).activation_names()


def test_attention_maps_are_computed_where_they_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    for kind in (SoftmaxAttention, LinearAttention, MesaAttention):
        pattern = kind.pattern if kind is not MesaAttention else kind._map
        name = pattern.__name__
        monkeypatch.setattr(kind, name, lambda *a, kind=kind, pattern=pattern: computed.append(kind) or pattern(*a))
    transformer, x = model(FULL), tokens(FULL)
    transformer.run(x, ["embed", "blocks.*.resid_post", "blocks.*.mlp.out"])
    assert computed == []
    transformer.run(x, ["blocks.1.attn.pattern"])
    assert computed == [MesaAttention]


@pytest.mark.parametrize("unknown", ["blocks.3.resid_post", "blocks.*.mlp.hidden", "Embed", ""])
def test_capture_of_an_unknown_name(unknown: str) -> None:
    with pytest.raises(InputError, match=r"matches no activation; known: embed, blocks.0.attn.") as error:
        model(FULL).run(tokens(FULL), ["embed", unknown])
    assert repr(unknown) in str(error.value)


def test_run_leaves_nothing_behind() -> None:
    transformer, x = model(FULL), tokens(FULL)
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    transformer.run(x, ["*"])
    for module in transformer.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
    assert all(torch.equal(value, before[name]) for name, value in transformer.state_dict().items())


def test_captured_activations_carry_gradients() -> None:
    x = tokens(FULL).requires_grad_()
    activation = model(FULL).run(x, ["blocks.0.resid_post"]).activations["blocks.0.resid_post"]
    (gradient,) = torch.autograd.grad(activation[:, 3].sum(), x)
    assert bool((gradient[:, :4] != 0).any())
    assert not bool(gradient[:, 4:].any())


# not where rounding decides which numbers are clipped
@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"clipped"}))
def test_many_tokens_in_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for every native kernel there is, against torch in float64: predictions and all gradients.

    The largest error is below 1e-5 or, where LayerNorm of few numbers magnifies rounding, twice that of torch.
    """
    model = Transformer(CONFIGS[name])
    tokens = torch.randn(260, 8, CONFIGS[name].token_dim, generator=torch.Generator().manual_seed(1))
    calls = CalledKernels(monkeypatch, dense).names

    def gradients(model: Transformer, tokens: Tensor) -> tuple[Tensor, ...]:
        predictions = model(tokens)
        weights = torch.randn(predictions.shape, generator=torch.Generator().manual_seed(2))
        gradients = torch.autograd.grad((predictions * weights).sum(), list(model.parameters()))
        return predictions.detach(), *gradients

    found = gradients(model, tokens)
    assert bool(calls) == (native_kernels() is not None)
    calls.clear()
    with monkeypatch.context() as without_kernels:
        without_kernels.setattr(dense, "uses_kernel", lambda *_: False)
        in_torch = gradients(model, tokens)
    exact = gradients(model.double(), tokens.double())
    ours, theirs = (
        max(float((x - y).norm() / y.norm()) for x, y in zip(results, exact, strict=True))
        for results in (found, in_torch)
    )
    assert ours <= max(1e-5, 2 * theirs)
    assert not calls


def test_positions_reach_the_first_layer_only() -> None:
    transformer = model(FULL)
    inputs = [
        (block.attn.W_Q.shape[1], block.attn.W_K.shape[1], block.attn.W_V.shape[1]) for block in transformer.blocks
    ]
    assert inputs == [(10, 10, 5), (5, 5, 5), (5, 5, 5)]


def test_without_positions_softmax_ignores_the_order_of_the_past() -> None:
    config = dataclasses.replace(CONFIGS["no norm"], attention=(Softmax(),))
    x = tokens(config)
    swapped = x[:, [1, 0, 2, 3, 4, 5]]
    torch.testing.assert_close(model(config)(swapped)[:, 2:], model(config)(x)[:, 2:])
    located = dataclasses.replace(config, position_dim=4)
    assert not torch.allclose(model(located)(swapped)[:, 2:], model(located)(x)[:, 2:])


@pytest.mark.parametrize(("length", "dim"), [(1, 1), (7, 4), (5, 5), (50, 40)])
def test_sinusoidal_positions(length: int, dim: int) -> None:
    np.testing.assert_allclose(sinusoidal_positions(length, dim), oracle.positions(length, dim), rtol=0, atol=1e-13)


@torch.no_grad()
def test_residual_stream_is_clipped() -> None:
    clipped = model(CONFIGS["clipped"]).run(10 * tokens(FULL), ["blocks.*.resid_post"]).activations
    for value in clipped.values():
        assert float(value.abs().max()) == pytest.approx(0.3)


def test_initial_weights_depend_on_the_generator_only() -> None:
    def weights(generator: torch.Generator | None) -> dict[str, Tensor]:
        return Transformer(FULL, generator).state_dict()

    torch.manual_seed(1)
    first = weights(torch.Generator().manual_seed(4))
    torch.manual_seed(2)
    second, other = weights(torch.Generator().manual_seed(4)), weights(torch.Generator().manual_seed(5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embed"], other["embed"])
    default, zero = weights(None), weights(torch.Generator().manual_seed(0))
    assert all(torch.equal(default[name], zero[name]) for name in default)


def test_initial_weights_have_the_configured_standard_deviation() -> None:
    config = dataclasses.replace(FULL, embed_dim=50, mlp_dim=200, position_dim=10, init_std=0.05)
    for name, parameter in Transformer(config).named_parameters():
        if parameter.dim() == 2:
            deviations = 5 / (2 * parameter.numel()) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(0.05, rel=deviations), name
        elif name.endswith("raw_ridge"):
            torch.testing.assert_close(torch.nn.functional.softplus(parameter.detach()), torch.full((2,), 0.4))
        else:
            assert torch.equal(parameter.detach(), torch.full((50,), float(name.endswith("weight")))), name


def test_a_transformer_is_a_predictor(generator: torch.Generator) -> None:
    transformer = Transformer(FULL, name="mine")
    assert isinstance(transformer, Predictor)
    assert transformer.name == "mine"
    sequences = fully_observed_linear(3, 6).sample(2, generator)
    predictions = transformer.predict(sequences)
    assert not predictions.requires_grad
    assert torch.equal(predictions, transformer(sequences.tokens).detach())


def test_tokens_of_a_wrong_size() -> None:
    with pytest.raises(InputError, match=r"tokens: got size 4, but token_dim is 3"):
        Transformer(FULL)(torch.zeros(1, 2, 4))


BAD: dict[str, dict[str, Any]] = {
    "attention: got (), but it must be at least one layer": {"attention": ()},
    "token_dim: got 0, but it must be at least 1": {"token_dim": 0},
    "num_heads: got 0": {"num_heads": 0},
    "key_dim: got -1": {"key_dim": -1},
    "embed_dim: got 0, but it must be at least 1, or None": {"embed_dim": 0},
    "mlp_dim: got 0": {"mlp_dim": 0},
    "position_dim: got 0": {"position_dim": 0},
    "prediction_dim: got 4, but it must be at most token_dim (3) when embed_dim is None": {
        "embed_dim": None,
        "prediction_dim": 4,
    },
    "activation_clip: got 0.0, but it must be greater than 0, or None": {"activation_clip": 0.0},
    "init_std: got 0.0, but it must be greater than 0": {"init_std": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_settings_that_are_not_allowed(message: str) -> None:
    with pytest.raises(InputError) as error:
        dataclasses.replace(FULL, **BAD[message])
    assert str(error.value).startswith(message)


def test_the_ridge_must_start_positive() -> None:
    with pytest.raises(InputError, match=r"initial_ridge: got 0.0, but it must be greater than 0"):
        Mesa(0.0)
