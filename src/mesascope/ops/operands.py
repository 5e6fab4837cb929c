"""What queries, keys and values must be, whatever is computed from them."""

from torch import Tensor

from mesascope.errors import require


def check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise an error unless q and k are `[B, T, H, D]` with D > 0, and v is `[B, T, H, Dv]`.

    Raises:
        InputError: names the operand, its shape and what is allowed.
    """
    if q.dim() == v.dim() == 4 and q.shape[-1] > 0 and k.shape == q.shape and v.shape[:3] == q.shape[:3]:
        return  # before sizes are put into words, which torch.compile would take for constants
    require(q.dim() == 4 and q.shape[-1] > 0, "q", tuple(q.shape), "of shape [B, T, H, D] with D > 0")
    require(k.shape == q.shape, "k", tuple(k.shape), f"of the shape of q {tuple(q.shape)}")
    batch, time, heads, _ = q.shape
    require(False, "v", tuple(v.shape), f"of shape [{batch}, {time}, {heads}, Dv]")
