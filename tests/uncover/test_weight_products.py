import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mesascope.constructions import (
    COPY,
    CURRENT,
    OUTPUT,
    PREVIOUS,
    SlotHead,
    SlotLayer,
    build,
    gradient_descent,
    proposition_1,
    read_slot,
)
from mesascope.errors import InputError
from mesascope.figures import HeatmapPanel
from mesascope.nn import Transformer
from mesascope.nn.architectures import constructed_linear, full_softmax
from mesascope.tasks import ConstructedTokens
from mesascope.uncover import (
    FOLDED_LABELS,
    PROPOSITION_1,
    PROPOSITION_1_FOLDED,
    WeightProducts,
    block_diagonality,
    block_scalars,
    combined_coefficients,
    combined_pattern_share,
    diagonal_energy,
    fold_inputs,
    pattern_share,
    weight_product_figure,
    weight_products,
)


def random_matrix(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_known_matrix():
    #  blocks:  [ 3 I | zero diagonal ] over [ diag(1, -1) | ones ]
    matrix = torch.tensor(
        [
            [3.0, 0.0, 0.0, 2.0],
            [0.0, 3.0, 2.0, 0.0],
            [1.0, 0.0, 1.0, 1.0],
            [0.0, -1.0, 1.0, 1.0],
        ],
        dtype=torch.float64,
    )
    assert block_scalars(matrix, 2).tolist() == [[3.0, 0.0], [0.0, 1.0]]
    assert diagonal_energy(matrix, 2).tolist() == [[18.0, 0.0], [2.0, 2.0]]
    assert float(block_diagonality(matrix, 2)) == pytest.approx(22 / 32)
    assert float(pattern_share(matrix, 2, ((0, 0), (1, 1)))) == pytest.approx(20 / 32)


@given(seed=st.integers(0, 2**32 - 1), block=st.integers(1, 4), rows=st.integers(1, 3), columns=st.integers(1, 4))
def test_measures_agree_with_loops(seed, block, rows, columns):
    matrix = random_matrix(seed, 2, rows * block, columns * block)
    scalars, energy = np.zeros((2, rows, columns)), np.zeros((2, rows, columns))
    for head in range(2):
        for row in range(rows):
            for column in range(columns):
                entries = [matrix[head, row * block + i, column * block + i].item() for i in range(block)]
                scalars[head, row, column] = sum(entries) / block
                energy[head, row, column] = sum(entry**2 for entry in entries)
    np.testing.assert_allclose(block_scalars(matrix, block), scalars, rtol=0, atol=1e-14)
    np.testing.assert_allclose(diagonal_energy(matrix, block), energy, rtol=1e-13)
    total = matrix.square().sum((1, 2)).numpy()
    np.testing.assert_allclose(block_diagonality(matrix, block), energy.sum((1, 2)) / total, rtol=1e-13)
    np.testing.assert_allclose(pattern_share(matrix, block, ((0, 0),)), energy[:, 0, 0] / total, rtol=1e-13)


def test_construction_lies_in_its_pattern_entirely():
    (layer,) = weight_products(proposition_1(3, 0.2, dtype=torch.float64))
    assert float(pattern_share(layer.QK, 3, PROPOSITION_1.QK)) == 1.0
    assert float(pattern_share(layer.PV, 3, PROPOSITION_1.PV)) == 1.0
    assert combined_pattern_share(layer, 3, PROPOSITION_1) == 1.0
    assert combined_pattern_share(fold_inputs(layer, 3), 3, PROPOSITION_1_FOLDED) == pytest.approx(1.0, abs=1e-15)


def test_random_weights_lie_on_block_diagonals_as_often_as_chance():
    share = block_diagonality(random_matrix(0, 400, 400), 10)
    assert float(share) == pytest.approx(0.1, abs=0.005)


def test_share_of_a_zero_matrix_is_undefined():
    zero = torch.zeros(4, 4)
    assert math.isnan(float(block_diagonality(zero, 2)))
    assert math.isnan(float(pattern_share(zero, 2, ((0, 0),))))
    assert math.isnan(combined_pattern_share(WeightProducts(0, zero[None], zero[None]), 2, PROPOSITION_1_FOLDED))


def test_products_come_from_every_attention_layer():
    model = Transformer(full_softmax(3, n_s=4))
    products = weight_products(model)
    assert [layer.layer for layer in products] == [0, 1, 2]
    # the position encoding of the first layer is concatenated to the input of keys and queries
    assert products[0].QK.shape == (4, 32, 32)
    assert products[1].QK.shape == products[1].PV.shape == (4, 16, 16)
    W_K, W_Q = (weight.detach()[20:40] for weight in (model.blocks[1].attn.W_K, model.blocks[1].attn.W_Q))
    torch.testing.assert_close(products[1].QK[1], W_K.T @ W_Q)


def test_products_are_copies():
    model = proposition_1(2, 0.1)
    (layer,) = weight_products(model)
    layer.PV.zero_()
    assert float(model.blocks[0].attn.PV.detach().abs().max()) > 0


def test_model_without_attention_is_an_error():
    with pytest.raises(InputError, match="model: got Linear, but it must contain a layer of mesascope"):
        weight_products(nn.Linear(2, 2))


def test_folding_finds_the_step_however_it_is_spread_over_identical_slots():
    # half of the values and a third of the queries come from the copy, which holds s_t as well
    values = 0.5 * read_slot(2, CURRENT) + 0.5 * read_slot(2, COPY)
    heads = (SlotHead(PREVIOUS, CURRENT, values * 2 / 3, OUTPUT), SlotHead(PREVIOUS, COPY, values / 3, OUTPUT))
    (spread,) = weight_products(build(2, [SlotLayer(heads)], name="spread", dtype=torch.float64))
    assert combined_pattern_share(spread, 2, PROPOSITION_1) < 0.5
    folded = fold_inputs(spread, 2)
    assert combined_pattern_share(folded, 2, PROPOSITION_1_FOLDED) == pytest.approx(1.0, abs=1e-15)
    assert float(combined_coefficients(folded, 2)[0, 0, 1, 0]) == pytest.approx(1.0, abs=1e-15)


@given(seed=st.integers(0, 2**32 - 1))
def test_folded_products_compute_the_layer(seed):
    model = Transformer(constructed_linear(1, n_s=3, key_dim=5), torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1000)
    observations = 0.1 * random_matrix(seed, 2, 6, 3)
    (layer,) = weight_products(model)
    folded = fold_inputs(layer, 3)
    previous = torch.cat([torch.zeros_like(observations[:, :1]), observations[:, :-1]], 1)
    u = torch.cat([observations, previous], -1)
    expected = torch.zeros_like(observations)
    for t in range(6):
        for past in range(t + 1):
            weights = torch.einsum("ba,hac,bc->bh", u[:, past], folded.QK, u[:, t])
            expected[:, t] += torch.einsum("bh,hoa,ba->bo", weights, folded.PV, u[:, past])
    actual = model(ConstructedTokens()(observations)).detach()
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_folding_needs_four_slots():
    (layer,) = weight_products(proposition_1(2, 0.1))
    with pytest.raises(InputError, match="n_s: got 3, but it must be a quarter of the size 8"):
        fold_inputs(layer, 3)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0.1, 10.0), angle=st.floats(0, 6.3))
def test_combined_measures_do_not_depend_on_how_heads_divide_the_work(seed, scale, angle):
    QK, PV = random_matrix(seed, 2, 4, 4), random_matrix(seed + 1, 2, 2, 4)
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    mixed = WeightProducts(
        0, scale * torch.einsum("hg,gab->hab", rotation, QK), torch.einsum("hg,gab->hab", rotation, PV) / scale
    )
    plain = WeightProducts(0, QK, PV)
    expected = combined_pattern_share(plain, 2, PROPOSITION_1_FOLDED)
    assert combined_pattern_share(mixed, 2, PROPOSITION_1_FOLDED) == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(combined_coefficients(mixed, 2), combined_coefficients(plain, 2))
    whole = torch.einsum("hij,hkl->ijkl", PV, QK)
    entries = [whole[i, i, 2 + k, k].item() ** 2 for i in range(2) for k in range(2)]
    assert expected == pytest.approx(sum(entries) / float(whole.square().sum()), rel=1e-9)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("block", [0, 3])
def test_block_must_divide_the_matrix(block):
    with pytest.raises(InputError, match=rf"block: got {block}, but it must be a divisor of .* \(4, 4\)"):
        block_diagonality(torch.eye(4), block)


def test_pattern_must_lie_inside_the_matrix():
    with pytest.raises(InputError, match=r"blocks: got \(2, 0\), but it must be inside the grid of 2 x 2 blocks"):
        pattern_share(torch.eye(4), 2, ((2, 0),))


def test_figure_has_a_row_per_product_of_each_layer():
    products = weight_products(gradient_descent(2, [0.1, 0.2]))
    figure = weight_product_figure(products, 2, id="products", title="Products", caption="")
    assert figure.columns == 2
    titles = [panel.title for panel in figure.panels]
    assert titles == [
        f"{product}, layer {layer}, head {head}"
        for layer in (1, 2)
        for product in ("W_K^T W_Q", "P W_V")
        for head in (1, 2)
    ]
    panel = figure.panels[2]
    assert isinstance(panel, HeatmapPanel)
    assert (panel.block, panel.block_labels) == (2, ("out", "copy", "s_t", "s_t-1"))
    np.testing.assert_array_equal(panel.matrix, products[0].PV[0].double().numpy())
    row_limits = {panel.limit for panel in figure.panels[2:4]}
    assert row_limits == {float(products[0].PV.abs().max())}


def test_figure_of_folded_products_has_their_labels():
    folded = fold_inputs(weight_products(proposition_1(2, 0.1))[0], 2)
    figure = weight_product_figure([folded], 2, id="f", title="", caption="", QK_labels=FOLDED_LABELS, PV_labels=())
    assert [panel.block_labels for panel in figure.panels] == [("s_t", "s_t-1"), ()]


def test_figure_without_layers_is_an_error():
    with pytest.raises(InputError, match=r"products: got .*, but it must be layers with one common number of heads"):
        weight_product_figure([], 2, id="f", title="", caption="")
