"""Mesa attention: ridge regression solved exactly at every time step, applied to the query."""

from jaxtyping import Float
from torch import Tensor

from mesascope.errors import InputError, require
from mesascope.ops.mesa.dual import mesa_attention_dual, mesa_attention_map_dual
from mesascope.ops.mesa.reference import mesa_attention_reference

__all__ = ["mesa_attention", "mesa_attention_map", "mesa_attention_reference"]


def mesa_attention(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "*#heads"],
) -> Float[Tensor, "batch time heads d_v"]:
    """o_t = argmin_Phi 1/2 sum_{t' <= t} ||v_t' - Phi k_t'||^2 + ridge/2 ||Phi||^2, applied to q_t.

    Args:
        q, k, v: queries, keys (what is regressed on) and values (the regression targets), `[B, T, H, D]`; v may have
            another last size.
        ridge: positive penalty, one per head or broadcastable to `[B, H]`; 1 / lambda of arXiv 2309.05858, eqs. 4-8.

    Returns:
        `[B, T, H, Dv]` in the dtype of `q`. Differentiable once in every argument.

    Raises:
        InputError: shapes or dtypes do not fit, ridge is not positive, or so small for the keys that the problem is
            singular in this dtype.
    """
    _check(q, k, ridge)
    fits = v.dim() == 4 and v.shape[:3] == k.shape[:3]
    require(fits, "v", tuple(v.shape), f"of shape [{', '.join(map(str, k.shape[:3]))}, Dv]")
    require(v.dtype == q.dtype, "v", v.dtype, f"of the dtype of q ({q.dtype})")
    return mesa_attention_dual(q, k, v, ridge)


def mesa_attention_map(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    ridge: Float[Tensor, "*#heads"],
) -> Float[Tensor, "batch heads time time"]:
    """The signed causal map alpha with o = alpha V: row t, column t', not normalised. Arguments as `mesa_attention`."""
    _check(q, k, ridge)
    return mesa_attention_map_dual(q, k, ridge)


def _check(q: Tensor, k: Tensor, ridge: Tensor) -> None:
    require(q.dim() == 4 and q.shape[-1] > 0, "q", tuple(q.shape), "of shape [B, T, H, D] with D > 0")
    require(k.shape == q.shape, "k", tuple(k.shape), f"of the shape of q {tuple(q.shape)}")
    require(k.dtype == q.dtype, "k", k.dtype, f"of the dtype of q ({q.dtype})")
    require(ridge.dtype == q.dtype, "ridge", ridge.dtype, f"of the dtype of q ({q.dtype})")
    try:
        ridge.expand(q.shape[0], q.shape[2])
    except RuntimeError:
        allowed = f"broadcastable to [B, H] = [{q.shape[0]}, {q.shape[2]}]"
        raise InputError(f"ridge: got shape {tuple(ridge.shape)}, but it must be {allowed}") from None
    if not bool((ridge > 0).all()):
        raise InputError(
            f"ridge: got a smallest value of {float(ridge.detach().min()):.3g}, but it must be greater than 0"
        )
