"""Gradient norms against finite differences and a closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from mesascope.errors import InputError
from mesascope.figures import LinePanel
from mesascope.nn import Linear, Mesa, Softmax, Transformer, TransformerConfig
from mesascope.uncover import HookedModel, Sensitivity, gradient_norms, sensitivity_over_training

BATCH, TIME, N_S = 2, 5, 3


def transformer(*kinds):
    config = TransformerConfig(
        token_dim=N_S,
        prediction_dim=N_S,
        attention=kinds,
        num_heads=2,
        key_dim=4,
        embed_dim=6,
        mlp_dim=8,
        layer_norm=True,
        position_dim=6,
        init_std=0.4,
    )
    return Transformer(config, torch.Generator().manual_seed(1)).double()


@pytest.fixture
def tokens(generator):
    return torch.randn(BATCH, TIME, N_S, generator=generator, dtype=torch.float64)


def finite_differences(model, tokens, time, activation, step=1e-5):
    """Mean over outputs and sequences of the norms, from central differences in every input."""
    norms = np.zeros(time)
    for t in range(time):
        rows = []
        for coordinate in range(N_S):
            moved = []
            for sign in (1, -1):
                shifted = tokens.clone()
                shifted[:, t, coordinate] += sign * step
                with torch.no_grad():
                    moved.append(model.run(shifted, capture=[activation]).activations[activation][:, time - 1])
            rows.append(((moved[0] - moved[1]) / (2 * step)).numpy())
        norms[t] = np.sqrt((np.stack(rows) ** 2).sum(0)).mean()
    return norms


@pytest.mark.parametrize("kind", [Softmax(), Linear(), Mesa(initial_ridge=0.5)], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize(("layer", "time"), [(0, TIME), (1, 3)])
def test_equals_finite_differences(tokens, kind, layer, time):
    model, activation = transformer(Softmax(), kind) if layer else transformer(kind), f"blocks.{layer}.resid_post"
    expected = finite_differences(model, tokens, time, activation)
    found = gradient_norms(model, tokens, time, activation)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert not any(parameter.grad is not None for parameter in model.parameters())


class TwoTaps(nn.Module):
    """A s_t + B s_{t-1}."""

    def __init__(self, A, B):
        super().__init__()
        self.A, self.B, self.mix = A, B, nn.Identity()

    def forward(self, tokens):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        return self.mix(tokens @ self.A.T + before @ self.B.T)


def two_taps(generator):
    A, B = torch.randn(2, N_S, N_S, generator=generator, dtype=torch.float64)
    return A, B, HookedModel(TwoTaps(A, B), {"mixed": "mix"}, name="two taps")


def test_somebody_elses_module(tokens, generator):
    A, B, model = two_taps(generator)
    found = gradient_norms(model, tokens, 4, "mixed")
    expected = [0.0, 0.0, B.norm(dim=1).mean(), A.norm(dim=1).mean()]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.fixture
def course(tokens):
    models = [(0, transformer(Softmax())), (100, transformer(Linear()))]
    return models, sensitivity_over_training(models, tokens)


def test_a_training_is_one_row_per_step(tokens, course):
    models, found = course
    np.testing.assert_array_equal(found.steps, [0, 100])
    assert found.time == TIME
    for row, (_, model) in zip(found.values, models, strict=True):
        np.testing.assert_array_equal(row, gradient_norms(model, tokens, TIME))
    np.testing.assert_array_equal(found.to(TIME), found.values[:, -1])
    np.testing.assert_array_equal(found.to(1), found.values[:, 0])
    np.testing.assert_allclose(found.to_rest(2), found.values[:, :3].mean(1), rtol=1e-15)
    np.testing.assert_allclose(found.ratio(4, recent=2), found.values[:, 3] / found.values[:, :3].mean(1), rtol=1e-15)


def test_lines_are_newest_tokens_first_and_the_rest_last(course):
    _, found = course
    (panel,) = found.figure("f", "F", "caption", recent=2).panels
    assert isinstance(panel, LinePanel)
    assert [line.label for line in panel.lines] == ["t' = 5", "t' = 4", "mean of t' = 1 .. 3"]
    table = found.table("t", "T", recent=2)
    assert table.columns == ("optimiser step", *(line.label for line in panel.lines))
    for row, step in enumerate((0, 100)):
        expected = [step, found.values[row, 4], found.values[row, 3], found.values[row, :3].mean()]
        np.testing.assert_allclose(table.rows[row], expected, rtol=1e-15)
    np.testing.assert_array_equal(panel.lines[2].y, found.to_rest(2))


def test_errors_name_the_argument(tokens, course):
    model, found = transformer(Softmax()), course[1]
    for time in (0, TIME + 1):
        with pytest.raises(InputError, match=f"time: got {time}, but it must be between 1 and 5"):
            gradient_norms(model, tokens, time)
    with pytest.raises(InputError, match=r"activation: got \(2, 2, 5, 5\), but it must be of shape \[2, 5, d\]"):
        gradient_norms(model, tokens, TIME, "blocks.0.attn.pattern")
    with pytest.raises(InputError, match="models: got none"):
        sensitivity_over_training([], tokens)
    with pytest.raises(InputError, match="token: got 6, but it must be between 1 and 5"):
        found.to(6)
    with pytest.raises(InputError, match="recent: got 5, but it must be between 1 and 4"):
        found.to_rest(5)
    assert isinstance(found, Sensitivity)
