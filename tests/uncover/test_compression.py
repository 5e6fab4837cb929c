import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mesascope.constructions import gradient_descent, proposition_1, proposition_2, ridge_regression
from mesascope.errors import InputError
from mesascope.nn import Transformer
from mesascope.nn.architectures import constructed_linear, constructed_softmax
from mesascope.tasks import ConstructedTokens
from mesascope.uncover import AllBlocks, LargestBlocks, LiveBlocks, compress, extract_algorithm, weight_products


def random_tokens(seed, n_s, batch=3, length=8):
    observations = 0.5 * torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, length, n_s)))
    return ConstructedTokens()(observations)


def random_model(seed, n_s=3, num_layers=2, **changes):
    config = constructed_linear(num_layers, n_s, key_dim=5, **changes)
    model = Transformer(config, torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1000)
    return model


@given(
    seed=st.integers(0, 2**32 - 1),
    step_sizes=st.lists(st.floats(0.01, 0.3), min_size=1, max_size=5),
    keep=st.sampled_from([AllBlocks(), LargestBlocks(), LiveBlocks()]),
)
def test_constructions_are_block_scalar_already(seed, step_sizes, keep):
    model = gradient_descent(3, step_sizes, ridge=0.1, dtype=torch.float64)
    tokens = random_tokens(seed, 3)
    torch.testing.assert_close(compress(model, keep)(tokens), model(tokens), rtol=0, atol=1e-10)


def test_compression_keeps_what_every_block_holds_on_average():
    model = random_model(0)
    compressed = compress(model)
    for original, kept in zip(weight_products(model), weight_products(compressed), strict=True):
        for name in ("QK", "PV"):
            before, after = getattr(original, name).numpy(), getattr(kept, name).numpy()
            for head in range(before.shape[0]):
                for row in range(4):
                    for column in range(4):
                        block = before[head, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
                        expected = np.trace(block) / 3 * np.eye(3)
                        actual = after[head, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
                        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_compression_twice_is_compression_once():
    once = compress(random_model(1))
    tokens = 0.3 * random_tokens(0, 3)
    torch.testing.assert_close(compress(once)(tokens), once(tokens), rtol=0, atol=1e-12)


def test_activation_clip_and_dtype_are_kept():
    model = random_model(2, activation_clip=0.05)
    compressed = compress(model)
    assert compressed.config.activation_clip == 0.05
    assert compressed.blocks[0].attn.P.dtype == torch.float64
    assert compressed.config.key_dim == 12
    largest = compressed(20 * random_tokens(3, 3)).detach().abs().max()
    assert float(largest) == 0.05


@pytest.mark.parametrize(("keep", "per_head"), [(AllBlocks(), 32), (LargestBlocks(), 16), (LiveBlocks(), 16)])
def test_numbers_are_counted(keep, per_head):
    algorithm = extract_algorithm(random_model(4), keep)
    assert algorithm.count == 2 * 4 * per_head
    assert algorithm.count_per_head == per_head
    assert int((algorithm.QK != 0).sum()) + int((algorithm.PV != 0).sum()) == algorithm.count


def test_largest_blocks_are_the_largest():
    everything, largest = (extract_algorithm(random_model(5), keep) for keep in (AllBlocks(), LargestBlocks(3)))
    for full, kept in ((everything.QK, largest.QK), (everything.PV, largest.PV)):
        for head_full, head_kept in zip(full.flatten(0, 1), kept.flatten(0, 1), strict=True):
            threshold = head_full.abs().flatten().sort(descending=True).values[2]
            torch.testing.assert_close(head_kept, torch.where(head_full.abs() >= threshold, head_full, 0.0))


def test_live_blocks_read_keys_from_data_and_leave_data_alone():
    everything, live = (extract_algorithm(random_model(6), keep) for keep in (AllBlocks(), LiveBlocks()))
    assert float(live.QK[:, :, :2].abs().max()) == 0
    assert float(live.PV[:, :, 2:].abs().max()) == 0
    torch.testing.assert_close(live.QK[:, :, 2:], everything.QK[:, :, 2:], rtol=0, atol=0)
    torch.testing.assert_close(live.PV[:, :, :2], everything.PV[:, :, :2], rtol=0, atol=0)


def test_name_tells_the_depth():
    assert compress(random_model(7)).name == "CompressedAlg-2"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ridge_regression(2, 1.0), r"model.config.attention\[0\]: got Mesa.*must be Linear\(\)"),
        (Transformer(constructed_softmax(1, 2)), r"model.config.attention\[0\]: got Softmax\(\)"),
        (proposition_2(2, [0.1], [0.0], 0.1), r"model.config.mlp_dim: got 16, but it must be None: an MLP"),
    ],
)
def test_models_with_other_parts_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        compress(model)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (LargestBlocks(17), "per_product: got 17, but it must be at most 16 blocks"),
        (LiveBlocks(key_slots=(4,)), r"key_slots: got \(4,\), but it must be between 0 and 3"),
    ],
)
def test_selections_must_fit_the_tokens(keep, message):
    with pytest.raises(InputError, match=message):
        compress(proposition_1(2, 0.1), keep)


def test_selection_of_nothing_is_an_error():
    with pytest.raises(InputError, match="per_product: got 0, but it must be at least 1"):
        LargestBlocks(0)
