"""Mean maps and their spread against NumPy on all sequences at once."""

import numpy as np
import pytest
import torch

from mesascope.errors import InputError
from mesascope.figures import HeatmapPanel
from mesascope.nn import Linear, Mesa, Softmax, Transformer, TransformerConfig
from mesascope.tasks import fully_observed_linear
from mesascope.uncover import AttentionMaps, mean_attention_maps
from oracles import attention

TIME, HEADS = 6, 2
NAMES = ("blocks.0.attn.pattern", "blocks.1.attn.pattern")


def transformer(*kinds):
    config = TransformerConfig(4, 4, kinds, num_heads=HEADS, key_dim=3, init_std=0.5)
    return Transformer(config, torch.Generator().manual_seed(2)).double()


@pytest.fixture
def batches(generator):
    task = fully_observed_linear(n_s=4, length=TIME)
    return [task.sample(size, generator, dtype=torch.float64) for size in (5, 3)]


def explicit_maps(kind, layer, x):
    """`[B, H, T, T]`: attention whose values are unit vectors returns its own map."""
    q, k = ((x @ weight.detach().numpy().T).reshape(*x.shape[:2], HEADS, 3) for weight in (layer.W_Q, layer.W_K))
    v = np.broadcast_to(np.eye(TIME)[None, :, None], (x.shape[0], TIME, HEADS, TIME))
    match kind:
        case Softmax():
            mixed = attention.softmax_attention(q, k, v)
        case Linear():
            mixed = attention.linear_attention(q, k, v)
        case Mesa():
            mixed = attention.mesa_attention(q, k, v, layer.ridge.detach().numpy())
    return mixed.transpose(0, 2, 1, 3)


@pytest.mark.parametrize("kind", [Softmax(), Linear(), Mesa(initial_ridge=0.5)], ids=lambda kind: type(kind).__name__)
def test_equals_numpy_on_all_sequences(kind, batches):
    model = transformer(kind)
    maps = explicit_maps(kind, model.blocks[0].attn, np.concatenate([batch.tokens.numpy() for batch in batches]))
    found = mean_attention_maps(model, batches)
    assert found.num_sequences == 8
    np.testing.assert_allclose(found.mean, maps.mean(0)[None], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.magnitude, np.abs(maps).mean(0)[None], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.deviation, maps.std(0, ddof=1)[None], rtol=1e-9, atol=1e-13)


def test_layers_in_the_order_of_their_names(batches):
    model = transformer(Softmax(), Linear())
    both = mean_attention_maps(model, batches, NAMES)
    assert both.activations == NAMES
    for row, name in enumerate(NAMES):
        np.testing.assert_array_equal(both.mean[row], mean_attention_maps(model, batches, [name]).mean[0])


def known() -> AttentionMaps:
    """Two heads: one reads t and t - 1 alone (0.3 and -0.7), the other everything alike."""
    copying, uniform = np.zeros((TIME, TIME)), np.tril(np.ones((TIME, TIME)))
    for t in range(TIME):
        copying[t, t] = 0.3
        if t > 0:
            copying[t, t - 1] = -0.7
    mean = np.stack([copying, uniform])[None]
    return AttentionMaps(("map",), mean, np.abs(mean), 0.1 * np.abs(mean) + np.tril(np.ones((TIME, TIME))), 9)


def test_shares_average_over_time_steps_with_a_choice():
    maps = known()
    np.testing.assert_allclose(maps.shares((0, 1)), [[1.0, np.mean([2 / t for t in (3, 4, 5, 6)])]], rtol=1e-14)
    np.testing.assert_allclose(maps.shares((1,)), [[0.7, np.mean([1 / t for t in (3, 4, 5, 6)])]], rtol=1e-14)
    np.testing.assert_allclose(maps.shares((0,)), [[0.3, np.mean([1 / t for t in range(2, 7)])]])
    np.testing.assert_allclose(maps.shares((4,)), [[0.0, 1 / 6]], rtol=1e-14)


def test_spread_is_the_mean_deviation_on_an_offset():
    np.testing.assert_allclose(known().spread(1), [[1.07, 1.1]], rtol=1e-14)
    np.testing.assert_allclose(known().spread(0), [[1.03, 1.1]], rtol=1e-14)


def test_table_and_figure():
    maps = known()
    table = maps.table("t", "T", (0, 1))
    assert table.columns[:4] == ("layer", "head", "share on t' = t", "share on t' = t - 1")
    assert table.columns[4:] == ("standard deviation on t' = t", "standard deviation on t' = t - 1")
    assert [row[:2] for row in table.rows] == [("map", 1), ("map", 2)]
    np.testing.assert_allclose(table.rows[0][2:], [0.3, 0.7, 1.03, 1.07], rtol=1e-14)
    figure = maps.figure("f", "F", "caption")
    assert (figure.columns, len(figure.panels)) == (2, 2)
    for panel, mean in zip(figure.panels, maps.mean[0], strict=True):
        assert isinstance(panel, HeatmapPanel)
        np.testing.assert_array_equal(panel.matrix, mean)
        assert panel.limit == 1.0


def test_errors_name_the_argument(batches):
    model = transformer(Softmax())
    with pytest.raises(InputError, match="batches: got none"):
        mean_attention_maps(model, [])
    with pytest.raises(InputError, match=r"activations: got .*, but it must be at least one name"):
        mean_attention_maps(model, batches, [])
    with pytest.raises(InputError, match=r"activations: got .*, but it must be maps of one shape \[B, H, T, T\]"):
        mean_attention_maps(model, batches, ["embed"])
    for offsets in ((-1,), (0, 5), ()):
        with pytest.raises(InputError, match=r"offsets: got .*, but it must be"):
            known().shares(offsets)
