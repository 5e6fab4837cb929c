"""Every named architecture builds, runs, is causal and has the size its table gives."""

import inspect

import pytest
import torch

from mesascope.nn import LayerNorm, Linear, Mesa, Softmax, Transformer, TransformerConfig, architectures

BUILT: dict[str, TransformerConfig] = {
    "Lin-1": architectures.constructed_linear(1),
    "Lin-6": architectures.constructed_linear(6),
    "Lin-6, keys of 40": architectures.constructed_linear(6, key_dim=40),
    "Softmax-2": architectures.constructed_softmax(2),
    "Mesa-1": architectures.constructed_mesa(),
    "Full-softmax-7": architectures.full_softmax(),
    "Full-softmax-3": architectures.full_softmax(3),
    "Hybrid-mesa": architectures.hybrid_mesa(),
    "Full-mesa": architectures.full_mesa(),
    "Partial-softmax-7": architectures.partial_softmax(),
    "Partial-softmax-7, width 5": architectures.partial_softmax(embed_dim=5),
    "Partial-hybrid": architectures.partial_hybrid(),
    "Nonlin-softmax-7": architectures.nonlinear_softmax(),
    "Nonlin-hybrid": architectures.nonlinear_hybrid(),
    "Linearisation, n = 4": architectures.linearisation_softmax(4),
}


def count(config: TransformerConfig) -> int:
    return sum(parameter.numel() for parameter in Transformer(config).parameters())


def test_every_public_function_is_in_the_table() -> None:
    functions = inspect.getmembers(architectures, inspect.isfunction)
    assert {name for name, _ in functions if not name.startswith("_")} == {
        "constructed_linear",
        "constructed_mesa",
        "constructed_softmax",
        "full_mesa",
        "full_softmax",
        "hybrid_mesa",
        "linearisation_softmax",
        "nonlinear_hybrid",
        "nonlinear_softmax",
        "partial_hybrid",
        "partial_softmax",
    }


@pytest.mark.parametrize("name", BUILT)
@torch.no_grad()
def test_builds_runs_and_is_causal(name: str, generator: torch.Generator) -> None:
    config = BUILT[name]
    model = Transformer(config).double()
    # the initial weights of constructed models are so small that only larger ones show what reaches what
    if config.init_std < 0.01:
        for parameter in model.parameters():
            parameter *= 0.1 / config.init_std if parameter.dim() == 2 else 1.0
    tokens = torch.randn(2, 8, config.token_dim, generator=generator, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 5:] += 1
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 8, config.prediction_dim)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(after[:, 5:], before[:, 5:], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", BUILT)
def test_every_parameter_is_trained(name: str, generator: torch.Generator) -> None:
    model = Transformer(BUILT[name])
    tokens = torch.randn(2, 6, BUILT[name].token_dim, generator=generator)
    model(tokens).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Lin-6", 6 * 12_800),
        ("Lin-6, keys of 40", 6 * 4 * 6_400),
        ("Lin-1", 2 * 3_200),
        ("Mesa-1", 2 * 3_200 + 2),
        # embeddings 2 x 10 x 40; per layer 4 x 80 x 40, MLP 2 x 40 x 160, two norms 4 x 40; positions 2 x 80 x 40
        ("Full-softmax-7", 800 + 7 * (12_800 + 12_800 + 160) + 6_400),
        ("Hybrid-mesa", 800 + 2 * (12_800 + 12_800 + 160) + 6_400 + 4),
        # keys of min(20, 5) = 5: 4 x 20 x 5, MLP 2 x 5 x 20, two norms 4 x 5, positions 2 x 20 x 5
        ("Partial-softmax-7, width 5", 50 + 7 * (400 + 200 + 20) + 200),
        ("Nonlin-softmax-7", 1_200 + 7 * (4 * 80 * 60 + 2 * 60 * 300 + 240) + 2 * 80 * 60),
    ],
)
def test_number_of_parameters(name: str, parameters: int) -> None:
    assert count(BUILT[name]) == parameters


def test_tables_of_the_paper() -> None:
    lin1, lin6 = BUILT["Lin-1"], BUILT["Lin-6"]
    assert (lin1.num_heads, lin6.num_heads) == (2, 4)
    assert (lin6.token_dim, lin6.prediction_dim, lin6.key_dim, lin6.activation_clip) == (40, 10, 20, 4.0)
    assert (lin6.embed_dim, lin6.mlp_dim, lin6.layer_norm, lin6.position_dim) == (None, None, False, None)
    assert lin6.init_std == 0.0002
    full = BUILT["Full-softmax-7"]
    assert (full.token_dim, full.embed_dim, full.mlp_dim, full.position_dim) == (10, 40, 160, 40)
    assert (full.num_layers, full.num_heads, full.key_dim, full.layer_norm, full.init_std) == (7, 4, 20, True, 0.05)
    assert BUILT["Hybrid-mesa"].attention == (Softmax(), Mesa())
    assert BUILT["Full-mesa"].attention == (Mesa(), Mesa())
    assert lin6.attention == (Linear(),) * 6
    partial = BUILT["Partial-softmax-7"]
    assert (partial.token_dim, partial.embed_dim, partial.position_dim, partial.key_dim) == (5, 80, 80, 20)
    assert BUILT["Partial-softmax-7, width 5"].key_dim == 5
    nonlinear = BUILT["Nonlin-hybrid"]
    assert (nonlinear.embed_dim, nonlinear.mlp_dim, nonlinear.qk_norm) == (60, 300, LayerNorm())
    assert full.qk_norm is None
    linearisation = BUILT["Linearisation, n = 4"]
    assert (linearisation.embed_dim, linearisation.key_dim) == (16, 8)
