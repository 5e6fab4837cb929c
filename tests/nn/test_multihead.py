"""The drop-in for torch's multi-head attention: what it computes, how it is called, where it is put."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mesascope.errors import InputError
from mesascope.nn import Mesa, MesaMultiheadAttention

from .mesa_layers import MESAS, Array, inputs, regression_by_hand, shaken

EMBED, HEADS = 8, 2
CAUSAL = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)


def attention(mesa: Mesa | None = None, **options: Any) -> MesaMultiheadAttention:
    torch.manual_seed(0)
    options = options if mesa is None else {**options, "mesa": mesa}
    built: MesaMultiheadAttention = shaken(MesaMultiheadAttention(EMBED, HEADS, batch_first=True, **options))
    return built


def tokens(batch: int = 3, time: int = 5, seed: int = 9) -> Tensor:
    return inputs(batch, time, size=EMBED, seed=seed)


def by_hand(layer: MesaMultiheadAttention, mesa: Mesa, query: Tensor, key: Tensor, value: Tensor) -> Array:
    w = {name: parameter.numpy() for name, parameter in layer.state_dict().items()}
    biases = w.get("in_proj_bias", np.zeros(3 * EMBED))
    projected = []
    for number, operand in enumerate((query, key, value)):
        rows = slice(number * EMBED, (number + 1) * EMBED)
        heads = (*operand.shape[:2], HEADS, EMBED // HEADS)
        projected.append((operand.numpy() @ w["in_proj_weight"][rows].T + biases[rows]).reshape(heads))
    q, k, v = projected
    mixed = regression_by_hand(w, mesa, q, k, v, key.numpy())
    return mixed.reshape(query.shape) @ w["out_proj.weight"].T + w.get("out_proj.bias", 0.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_output_by_hand(name: str, bias: bool) -> None:
    layer = attention(MESAS[name], bias=bias)
    query, key, value = (tokens(seed=seed) for seed in (1, 2, 3))
    output, weights = layer(query, key, value, need_weights=False, is_causal=True)
    np.testing.assert_allclose(output, by_hand(layer, MESAS[name], query, key, value), rtol=1e-9, atol=1e-11)
    assert weights is None


@torch.no_grad()
def test_maps_mix_the_values() -> None:
    layer, x = attention(MESAS["everything"]), tokens()
    output, maps = layer(x, x, x, is_causal=True, average_attn_weights=False)
    _, average = layer(x, x, x, is_causal=True)
    assert maps.shape == (3, HEADS, 5, 5)
    assert torch.equal(maps, maps.tril())
    assert torch.equal(average, maps.mean(1))
    v = nn.functional.linear(x, layer.in_proj_weight[-EMBED:], layer.in_proj_bias[-EMBED:])
    mixed = torch.einsum("bhij,bjhd->bihd", maps, v.unflatten(-1, (HEADS, -1))).flatten(-2)
    torch.testing.assert_close(layer.out_proj(mixed), output, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("need_weights", [True, False])
@torch.no_grad()
def test_layouts_of_torch(need_weights: bool) -> None:
    """Time first, batch first, no batch: shapes as those of torch.nn.MultiheadAttention, and all the same numbers."""
    layer, x = attention(), tokens()
    output, weights = layer(x, x, x, is_causal=True, need_weights=need_weights)
    peer = nn.MultiheadAttention(EMBED, HEADS).double()
    layer.batch_first = False
    for argument, expected in ((x.transpose(0, 1), output.transpose(0, 1)), (x[0], output[0])):
        found = layer(argument, argument, argument, is_causal=True, need_weights=need_weights)
        torch.testing.assert_close(found[0], expected)
        theirs = peer(argument, argument, argument, attn_mask=CAUSAL, need_weights=need_weights)
        assert found[0].shape == theirs[0].shape
        if need_weights:
            assert found[1].shape == theirs[1].shape
            torch.testing.assert_close(found[1], weights if argument.dim() == 3 else weights[0])
        else:
            assert found[1] is None


@pytest.mark.parametrize("float_mask", [False, True])
@torch.no_grad()
def test_causal_masks(float_mask: bool) -> None:
    layer, x = attention(), tokens()
    mask = CAUSAL if float_mask else CAUSAL < 0
    expected = layer(x, x, x, is_causal=True)[0]
    for shaped in (mask, mask.expand(3 * HEADS, 5, 5)):
        for is_causal in (False, True):
            assert torch.equal(layer(x, x, x, attn_mask=shaped, is_causal=is_causal)[0], expected)


@pytest.mark.parametrize("float_mask", [False, True])
@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_padding_is_as_if_it_were_not_there(name: str, float_mask: bool) -> None:
    """Left, right, and whole rows, with values that would show, NaN included."""
    layer, x = attention(MESAS[name]), tokens()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, :2], padding[1, 3:], padding[2] = True, True, True
    mask = torch.zeros(3, 5, dtype=torch.float64).masked_fill(padding, -torch.inf) if float_mask else padding
    key = x.masked_fill(padding[..., None], torch.nan)
    query = x.masked_fill(padding[..., None], 1.0)
    output, maps = layer(query, key, key, key_padding_mask=mask, is_causal=True, average_attn_weights=False)
    torch.testing.assert_close(output[0, 2:], layer(x[0, 2:], x[0, 2:], x[0, 2:], is_causal=True)[0])
    torch.testing.assert_close(output[1, :3], layer(x[1, :3], x[1, :3], x[1, :3], is_causal=True)[0])
    torch.testing.assert_close(output[2], layer.out_proj.bias.expand(5, -1))
    assert not bool(maps.transpose(1, 2).transpose(2, 3)[padding[:, None].expand(3, 5, 5)].any())
    alone = layer(query[0], key[0], key[0], key_padding_mask=mask[0], is_causal=True)[0]
    torch.testing.assert_close(alone, output[0])


@pytest.mark.parametrize("name", MESAS)
def test_gradients_reach_every_parameter(name: str) -> None:
    layer, x = attention(MESAS[name]), tokens()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    output, maps = layer(x, x, x, key_padding_mask=padding, is_causal=True)
    (output.square().sum() + maps.square().sum()).backward()
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool((parameter.grad != 0).any()), parameter_name


def test_weights_of_torch_are_taken_over() -> None:
    peer = nn.MultiheadAttention(EMBED, HEADS)
    layer = MesaMultiheadAttention(EMBED, HEADS)
    missing, unexpected = layer.load_state_dict(peer.state_dict(), strict=False)
    assert (missing, unexpected) == (["raw_ridge"], [])
    torch.manual_seed(5)
    initial = nn.MultiheadAttention(EMBED, HEADS).in_proj_weight
    torch.manual_seed(5)
    ours = MesaMultiheadAttention(EMBED, HEADS)
    torch.testing.assert_close(ours.in_proj_weight.std(), initial.std(), rtol=0.3, atol=0)
    assert not bool(ours.in_proj_bias.any() or ours.out_proj.bias.any())


@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.bfloat16, None), (None, "meta")])
def test_dtype_and_device(dtype: torch.dtype | None, device: str | None) -> None:
    layer = MesaMultiheadAttention(EMBED, HEADS, device=device, dtype=dtype)
    for parameter in layer.parameters():
        assert parameter.dtype == (dtype or torch.float32)
        assert parameter.device.type == (device or "cpu")


def encoder_layer(**options: Any) -> nn.TransformerEncoderLayer:
    """A layer of torch in float64 whose attention is ours."""
    torch.manual_seed(1)
    block = nn.TransformerEncoderLayer(EMBED, HEADS, 16, dropout=0.0, batch_first=True, **options)
    block.self_attn = attention()
    return block.double()


def composed(block: nn.TransformerEncoderLayer, x: Tensor, padding: Tensor | None = None) -> Tensor:
    """What a pre-norm layer computes, with our attention."""
    normed = block.norm1(x)
    x = x + block.self_attn(normed, normed, normed, key_padding_mask=padding, need_weights=False, is_causal=True)[0]
    return x + block.linear2(block.linear1(block.norm2(x)).relu())


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_inside_an_encoder_layer(bias: bool, padded: bool, is_causal: bool) -> None:
    """Also in evaluation without gradients, where torch computes attention of its own from the weights if it can."""
    block, x = encoder_layer(norm_first=True, bias=bias), tokens()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    chosen = padding if padded else None
    options = {"src_mask": CAUSAL, "src_key_padding_mask": chosen, "is_causal": is_causal}
    if padded:
        options["src_mask"] = CAUSAL < 0
    expected = composed(block, x, chosen)
    torch.testing.assert_close(block.train()(x, **options), expected)
    block.eval()
    torch.testing.assert_close(block(x, **options), expected)
    with torch.inference_mode():
        torch.testing.assert_close(block(x, **options), expected)
        if not padded:
            torch.testing.assert_close(block(x, src_mask=None, is_causal=True), expected)


def test_torch_would_bypass_an_attention_that_does_not_refuse() -> None:
    """The reason for `_qkv_same_embed_dim`: with it, softmax attention of the same weights comes out."""
    block, x = encoder_layer(norm_first=True).eval(), tokens()
    block.self_attn._qkv_same_embed_dim = True
    block.self_attn.merge_masks = lambda mask, padding, query: (mask.bool(), 0)
    with torch.inference_mode():
        assert not torch.allclose(block(x, src_mask=CAUSAL), composed(block, x))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@torch.no_grad()
def test_inside_an_encoder() -> None:
    """Made of our layers, or with our layers put in."""
    x = tokens()
    block = encoder_layer(norm_first=True)
    encoder = nn.TransformerEncoder(block, 2).eval()
    expected = composed(encoder.layers[1], composed(encoder.layers[0], x))
    torch.testing.assert_close(encoder(x, mask=CAUSAL), expected)
    torch.testing.assert_close(encoder(x, mask=CAUSAL, is_causal=True), expected)
    changed = nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True), 2).double().eval()
    for layer in changed.layers:
        layer.self_attn = copy.deepcopy(block.self_attn)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    late = x.clone()
    late[:, 3:] += 1
    before, after = (changed(now, mask=CAUSAL < 0, src_key_padding_mask=padding) for now in (x, late))
    torch.testing.assert_close(before[:, :3], after[:, :3])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.usefixtures("unchecked_shapes")
@torch.no_grad()
def test_nested_tensors_are_refused_with_advice() -> None:
    """Torch makes them of padded sequences if there is no mask and the encoder was made for softmax attention."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True), 1).double().eval()
    encoder.layers[0].self_attn = attention()
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    with pytest.raises(InputError, match=r"^query: got a nested tensor, .* enable_nested_tensor=False"):
        encoder(tokens(), src_key_padding_mask=padding, is_causal=True)
    plain = nn.TransformerEncoder(encoder.layers[0], 1, enable_nested_tensor=False).eval()
    assert bool(plain(tokens(), src_key_padding_mask=padding, is_causal=True).isfinite().all())


def test_inside_a_decoder_layer() -> None:
    torch.manual_seed(1)
    block = nn.TransformerDecoderLayer(EMBED, HEADS, 16, dropout=0.0, batch_first=True).double()
    block.self_attn = attention()
    x, memory = tokens(), tokens(seed=2)
    changed = x.clone()
    changed[:, 3:] += 1
    before, after = (block(now, memory, tgt_mask=CAUSAL, tgt_is_causal=True) for now in (x, changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
