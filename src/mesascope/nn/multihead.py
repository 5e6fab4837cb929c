"""A mesa layer with the calls and weights of `torch.nn.MultiheadAttention`."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mesascope.errors import InputError, require
from mesascope.nn.config import Mesa
from mesascope.nn.features import UnitNorm
from mesascope.nn.regression import MesaRegression
from mesascope.ops.mesa.checks import tracing


class MesaMultiheadAttention(MesaRegression):
    """Takes the place of a causal `torch.nn.MultiheadAttention`, also inside torch's Transformer layers.

    Names and shapes of the projections are those of torch, so `load_state_dict(torch_layer.state_dict(),
    strict=False)` takes them over; what a mesa layer has in addition is as in `MesaAttention`.

    Differences from torch.nn.MultiheadAttention: (1) it cannot look ahead, so every call states that it is causal;
    (2) there is no dropout of weights, which are not probabilities but the solution of a regression; (3) a token that
    is masked by `key_padding_mask` is as if it were not there: it is not written, forgets nothing and is nobody's
    previous key; (4) a row without any token gives zero before the output projection, not NaN.

    Args:
        embed_dim: size of the input and output.
        num_heads: H; divides `embed_dim`.
        dropout: 0, see above.
        bias: biases of the input and output projections.
        add_bias_kv, add_zero_attn: False.
        kdim, vdim: None or `embed_dim`.
        batch_first: tensors are `[B, T, embed_dim]`, not `[T, B, embed_dim]`.
        device, dtype: of the parameters.
        mesa: ridges, features, key shift, gates and regularizer. The default divides queries and keys by their norm.

    Raises:
        InputError: an argument has a value that a mesa layer cannot serve.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mesa: Mesa = Mesa(features=(UnitNorm(),)),
    ) -> None:
        super().__init__()
        require(embed_dim >= 1, "embed_dim", embed_dim, "at least 1")
        divides = num_heads >= 1 and embed_dim % num_heads == 0
        require(divides, "num_heads", num_heads, f"a positive divisor of embed_dim ({embed_dim})")
        require(dropout == 0, "dropout", dropout, "0: the weights of a regression cannot be dropped")
        for argument, given in (("add_bias_kv", add_bias_kv), ("add_zero_attn", add_zero_attn)):
            require(not given, argument, given, "False: a regression takes no tokens but those of the sequence")
        for argument, size in (("kdim", kdim), ("vdim", vdim)):
            require(size in (None, embed_dim), argument, size, f"None or embed_dim ({embed_dim})")
        self.embed_dim = self.kdim = self.vdim = embed_dim
        self.num_heads, self.key_dim, self.batch_first, self.dropout = (
            num_heads,
            embed_dim // num_heads,
            batch_first,
            0.0,
        )
        # TransformerEncoderLayer would compute softmax attention from the weights by itself; it does not where this is
        # False, which for torch means separate projections
        self._qkv_same_embed_dim = False
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim)) if bias else None
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)
        self.features = mesa.features
        self._add_regression(mesa, embed_dim)
        self.to(device=device, dtype=dtype)

    def forward(
        self,
        query: Float[Tensor, "*batch embed_dim"],
        key: Float[Tensor, "*batch embed_dim"],
        value: Float[Tensor, "*batch embed_dim"],
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Mesa attention of every query to the keys and values up to its own time.

        Args:
            query, key, value: all `[B, T, embed_dim]` (`[T, B, embed_dim]` unless `batch_first`) or `[T, embed_dim]`.
                Gates see `key`.
            key_padding_mask: `[B, T]` or `[T]`, True or -inf for tokens that are not there.
            need_weights: also return the causal maps, in O(T^2) memory.
            attn_mask: the causal mask, `[T, T]` or `[B H, T, T]`: True or -inf above the diagonal, else False or 0.
            average_attn_weights: return the mean of the maps over the heads.
            is_causal: True, or `attn_mask` is needed.

        Returns:
            The output, as `query`, and the maps, signed and not normalised, `[B, T, T]`, or `[B, H, T, T]` if not
            averaged, without B as the query; None unless `need_weights`.

        Raises:
            InputError: an argument asks for what a mesa layer cannot do, or has a wrong shape. Under torch.compile and
                vmap the values of masks are unknown and taken for granted.
        """
        batched = query.dim() == 3
        query, key, value = self._batch_first(query, key, value)
        batch, time, _ = query.shape
        _require_causal(attn_mask, is_causal, batch * self.num_heads, time)
        padding = None if key_padding_mask is None else _padding(key_padding_mask, (batch, time), batched)
        weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = tuple(
            nn.functional.linear(operand, weight, bias).unflatten(-1, (self.num_heads, self.key_dim))
            for operand, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        inputs = self._inputs(projected, key, None, padding)
        output = self.out_proj(self._regress(inputs).flatten(-2))
        maps = self._map(inputs) if need_weights else None
        if maps is not None and average_attn_weights:
            maps = maps.mean(1)
        if not batched:
            return output[0], None if maps is None else maps[0]
        return output if self.batch_first else output.transpose(0, 1), maps

    def _batch_first(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of them as `[B, T, embed_dim]`."""
        if query.is_nested:
            raise InputError(
                "query: got a nested tensor, but it must be a plain one; make torch.nn.TransformerEncoder with "
                "enable_nested_tensor=False"
            )
        shape = tuple(query.shape)
        fits = len(shape) in (2, 3) and shape[-1] == self.embed_dim
        order = "[B, T, embed_dim]" if self.batch_first else "[T, B, embed_dim]"
        require(fits, "query", shape, f"of shape {order} or [T, embed_dim] with embed_dim = {self.embed_dim}")
        for argument, operand in (("key", key), ("value", value)):
            allowed = f"of the shape of query {shape}: token t is written before query t is answered"
            require(tuple(operand.shape) == shape, argument, tuple(operand.shape), allowed)
        if len(shape) == 2:
            return query[None], key[None], value[None]
        if self.batch_first:
            return query, key, value
        return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)


def _padding(mask: Tensor, shape: tuple[int, int], batched: bool) -> Tensor:
    """`key_padding_mask` as booleans, `[B, T]`."""
    allowed = f"of shape [B, T] = {shape}" if batched else f"of shape [T] = {shape[1:]}"
    require(tuple(mask.shape) == (shape if batched else shape[1:]), "key_padding_mask", tuple(mask.shape), allowed)
    if mask.dtype != torch.bool:
        hidden = mask == -torch.inf
        allowed = "boolean, or 0 and -inf: a mesa layer has no logits to add to"
        known = tracing() or bool((hidden | (mask == 0)).all())
        require(known, "key_padding_mask", "other values", allowed)
        mask = hidden
    return mask.reshape(shape)


def _require_causal(mask: Tensor | None, is_causal: bool, rows: int, time: int) -> None:
    if mask is None:
        require(is_causal, "is_causal", False, "True, or attn_mask the causal mask: a mesa layer cannot look ahead")
        return
    shapes = ((time, time), (rows, time, time))
    require(tuple(mask.shape) in shapes, "attn_mask", tuple(mask.shape), f"of shape {shapes[0]} or {shapes[1]}")
    later = torch.ones(time, time, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype == torch.bool:
        causal = mask == later
    else:
        causal = mask == torch.zeros_like(mask).masked_fill(later, -torch.inf)
    allowed = "the causal one: True or -inf above the diagonal and False or 0 elsewhere"
    require(tracing() or bool(causal.all()), "attn_mask", "another mask", allowed)
