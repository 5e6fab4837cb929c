import pytest
import torch

from mesascope.constructions import COPY, CURRENT, OUTPUT, SlotHead, SlotLayer, block_matrix, build, read_slot
from mesascope.errors import InputError


def test_read_slot_picks_one_slot_of_a_token():
    token = torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(read_slot(2, CURRENT, 3.0) @ token, 3 * token[4:6], rtol=0, atol=0)


def test_block_matrix_scales_identities():
    expected = torch.tensor([[1.0, 0.0, 2.0, 0.0], [0.0, 1.0, 0.0, 2.0]])
    torch.testing.assert_close(block_matrix(torch.tensor([[1.0, 2.0]]), 2), expected, rtol=0, atol=0)


def test_update_is_an_exact_linear_map_of_the_token():
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    silent = SlotHead(COPY, COPY, torch.zeros(3, 12, dtype=torch.float64), OUTPUT)
    model = build(3, [SlotLayer((silent,), update)], name="map", dtype=torch.float64)
    tokens = 10 * torch.randn(2, 5, 12, generator=generator, dtype=torch.float64)
    final = model.run(tokens, ["blocks.0.resid_post"]).activations["blocks.0.resid_post"]
    torch.testing.assert_close(final, tokens + tokens @ update.T, rtol=1e-13, atol=1e-12)


def test_layers_may_have_fewer_heads_than_others():
    head = SlotHead(COPY, COPY, read_slot(2, CURRENT), OUTPUT)
    model = build(2, [SlotLayer((head, head)), SlotLayer((head,))], name="mixed", dtype=torch.float64)
    assert model.config.num_heads == 2
    assert float(model.blocks[1].attn.QK[1].detach().abs().max()) == 0


def test_size_must_be_positive():
    with pytest.raises(InputError, match="n_s: got 0"):
        build(0, [], name="empty", dtype=torch.float64)
