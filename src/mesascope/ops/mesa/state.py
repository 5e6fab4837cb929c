"""The state of mesa attention between tokens: what a decoder carries along instead of a cache that grows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mesascope.errors import CheckpointError, InputError, require
from mesascope.files import read_tensors, write_tensors
from mesascope.ops.kernels import observed
from mesascope.ops.mesa.checks import check_regularizer, check_ridge, compute_dtype, expand_ridge, prepare, tracing
from mesascope.ops.mesa.problem import LARGEST_RESIDUAL, Regularizer, relative_size
from mesascope.ops.operands import require_tensors

_FORMAT = "mesa state"


@dataclass(frozen=True, eq=False)
class MesaState:
    """Everything mesa attention knows about the tokens so far, in O(D (D + Dv)) numbers per head.

    Attributes:
        regularizer: with which `matrix` was made.
        matrix: symmetric, `[B, H, D, D]`. With "initial" R_t = H_t^-1, the inverse of all that was written and of what
            is left of the ridge; with "constant" C_t, the sum of what was written, without the ridge.
        association: G_t = sum_i beta_i m_{t,i} v_i k_i^T, `[B, H, Dv, D]`.
    """

    regularizer: Regularizer
    matrix: Float[Tensor, "batch heads d d"]
    association: Float[Tensor, "batch heads d_v d"]

    @classmethod
    def initial(
        cls,
        ridge: Float[Tensor, "..."],
        *,
        batch: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        regularizer: Regularizer = "initial",
    ) -> "MesaState":
        """The state before the first token, in the dtype to compute in and on the device of `ridge`.

        Args:
            ridge: as for `mesa_attention`.
            batch, heads, key_dim, value_dim: B, H, D and Dv.
            regularizer: "initial" or "constant".

        Raises:
            InputError: the ridge has another shape or a value that is not allowed, a size is negative, keys have no
                coordinates, or there is no such regularizer.
        """
        check_regularizer(regularizer)
        for name, size in (("batch", batch), ("heads", heads), ("value_dim", value_dim)):
            require(size >= 0, name, size, "at least 0")
        require(key_dim >= 1, "key_dim", key_dim, "at least 1")
        require_tensors(ridge=ridge)
        require(ridge.is_floating_point(), "ridge", ridge.dtype, "a floating-point tensor")
        if not (observed() or ridge.is_meta):  # values that nobody knows are not asked for
            check_ridge(ridge)
        ridge = expand_ridge(ridge.to(compute_dtype(ridge.dtype)), batch, heads, key_dim)
        matrix = torch.diag_embed(1 / ridge if regularizer == "initial" else torch.zeros_like(ridge))
        return cls(regularizer, matrix, ridge.new_zeros(batch, heads, value_dim, key_dim))

    def step(
        self,
        q: Float[Tensor, "batch heads d"],
        k: Float[Tensor, "batch heads d"],
        v: Float[Tensor, "batch heads d_v"],
        ridge: Float[Tensor, "..."] | None = None,
        *,
        log_forget: Float[Tensor, "batch heads"] | None = None,
        write: Float[Tensor, "batch heads"] | None = None,
    ) -> tuple[Float[Tensor, "batch heads d_v"], "MesaState"]:
        """One more token: its output and the state after it. Equal to `mesa_attention` with T = 1, and cheaper.

        "initial" takes one Sherman-Morrison step, O(D (D + Dv)) (arXiv 2309.05858, eqs. 6 and 14); "constant" solves
        once, O(D^3 / 3).

        Args:
            q, k, v: of the token; `[B, H, D]`, v `[B, H, Dv]`.
            ridge: needed with "constant", where it is not part of the state; not used with "initial".
            log_forget, write: of the token, `[B, H]`, as in `mesa_attention`.

        Raises:
            InputError: as `mesa_attention`; also once rounding has destroyed the inverse of an "initial" state.
        """
        gates = {name: gate for name, gate in (("log_forget", log_forget), ("write", write)) if gate is not None}
        require_tensors(q=q, k=k, v=v, **gates)
        _check_step(q, k, v, gates)
        constant = self.regularizer == "constant"
        if constant and ridge is None:
            raise InputError('ridge: got None, but a state of regularizer "constant" needs it, for it does not hold it')
        dtype = q.dtype
        operands = prepare(
            q.unsqueeze(1),
            k.unsqueeze(1),
            v.unsqueeze(1),
            ridge if constant and ridge is not None else torch.ones((), dtype=compute_dtype(dtype), device=q.device),
            None if log_forget is None else log_forget.unsqueeze(1),
            None if write is None else write.unsqueeze(1),
        ).completed()
        q, k, v = (operand[:, 0] for operand in (operands.q, operands.k, operands.v))
        self.check(self.regularizer, k, v)
        strength = torch.ones_like(k[..., :1]) if operands.write is None else operands.write[:, 0, :, None]
        # what is not symmetric would grow by 1 / gamma per step, in the matrix and, backwards, in its gradient
        start, known = (self.matrix + self.matrix.mT) / 2, self.association
        if operands.log_forget is not None:
            keep = operands.log_forget[:, 0, :, None, None].exp()
            start, known = start * keep if constant else start / keep, known * keep
        association = torch.addcmul(known, v[..., :, None], (strength * k)[..., None, :])
        if constant:
            matrix = _add_outer(start, k, strength)
            solved = _solve(matrix + torch.diag_embed(operands.ridge), q)
        else:
            matrix = _sherman_morrison(start, k, strength)
            solved = _times(matrix, q)
        output = _times(association, solved)
        return output.to(dtype), MesaState(self.regularizer, matrix, association)

    def check(self, regularizer: Regularizer, k: Tensor, v: Tensor) -> None:
        """Raise an error unless the state continues with keys `[B, ..., H, D]` and values `[B, ..., H, Dv]`."""
        batch, heads, d = k.shape[0], k.shape[-2], k.shape[-1]
        if self.regularizer != regularizer:
            raise InputError(f"state: its regularizer is {self.regularizer!r}, but {regularizer!r} was asked for")
        shapes = {"matrix": (batch, heads, d, d), "association": (batch, heads, v.shape[-1], d)}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            require(tensor.shape == shape, f"state.{name}", tuple(tensor.shape), f"of shape {shape}")
            require(tensor.dtype == k.dtype, f"state.{name}", tensor.dtype, f"{k.dtype}, the type to compute in")
            require(tensor.device == k.device, f"state.{name}", str(tensor.device), f"on the device of k ({k.device})")
            require(_finite(tensor), f"state.{name}", "values that are NaN or infinite", "finite")

    def require_finite(self) -> None:
        """Raise an error if what was computed does not fit into the number range."""
        if not (_finite(self.matrix) and _finite(self.association)):
            raise InputError(
                f"state: it has overflowed in {self.matrix.dtype}, because forgetting wound up its inverse in "
                'directions that no key excites, or keys and values are too large; use regularizer="constant", forget '
                "less, smaller operands or float64"
            )

    def detach(self) -> "MesaState":
        """The same state, through which no gradient flows."""
        return MesaState(self.regularizer, self.matrix.detach(), self.association.detach())

    def to(self, *arguments: Any, **options: Any) -> "MesaState":
        """The same state on another device or in another dtype; arguments as for `torch.Tensor.to`."""
        return MesaState(
            self.regularizer, self.matrix.to(*arguments, **options), self.association.to(*arguments, **options)
        )

    def save(self, path: Path | str) -> None:
        """Write the state into one safetensors file; what was at `path` survives a failure.

        Raises:
            StorageError: the file cannot be written.
        """
        tensors = {"matrix": self.matrix.cpu().resolve_neg(), "association": self.association.cpu().resolve_neg()}
        write_tensors(
            Path(path), tensors, {"format": _FORMAT, "regularizer": self.regularizer}, advice="save the state again"
        )

    @classmethod
    def load(cls, path: Path | str) -> "MesaState":
        """Read what `save` wrote, onto the CPU.

        Raises:
            CheckpointError: there is no such file, it is damaged or holds something else.
        """
        tensors, metadata = read_tensors(Path(path), advice="save the state again")
        if metadata.get("format") != _FORMAT:
            raise CheckpointError(f"{path}: not a mesa state; it was written by something else than MesaState.save")
        return cls(metadata["regularizer"], tensors["matrix"], tensors["association"])


def _check_step(q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor]) -> None:
    """Raise an error that speaks of the shapes of one token, which are those of no sequence."""
    require(q.dim() == 3 and q.shape[-1] > 0, "q", tuple(q.shape), "of shape [B, H, D] with D > 0")
    require(k.shape == q.shape, "k", tuple(k.shape), f"of the shape of q {tuple(q.shape)}")
    batch, heads, _ = q.shape
    require(v.dim() == 3 and v.shape[:2] == q.shape[:2], "v", tuple(v.shape), f"of shape [{batch}, {heads}, Dv]")
    for name, gate in gates.items():
        require(gate.shape == q.shape[:2], name, tuple(gate.shape), f"of shape [B, H] = {tuple(q.shape[:2])}")


def _sherman_morrison(inverse: Tensor, k: Tensor, strength: Tensor) -> Tensor:
    """(R^-1 + beta k k^T)^-1 = R - beta u u^T / (1 + beta k . u) with u = R k."""
    u = _times(inverse, k)
    gain = 1 / (1 + strength * (k * u).sum(-1, keepdim=True))
    updated = _add_outer(inverse, u, -strength * gain)
    if not tracing():
        # the new inverse times k is known exactly: what it differs by is what rounding has done to it
        exact = (gain * u).detach()
        error = relative_size(_times(updated, k).detach() - exact, exact)
        if not (error <= LARGEST_RESIDUAL and bool(exact.isfinite().all())):
            raise InputError(
                f"state: rounding in {inverse.dtype} has destroyed its inverse (relative error {error:.2g}, "
                f"{LARGEST_RESIDUAL:g} is allowed), because forgetting wound it up in directions that no key excites, "
                'or the ridge is too small for the keys; use regularizer="constant", a larger ridge or float64'
            )
    return updated


def _solve(matrix: Tensor, q: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(matrix)
    solved = torch.cholesky_solve(q[..., None], factor)[..., 0]
    error = 0.0 if tracing() else relative_size((q - _times(matrix, solved)).detach(), q.detach())
    if not error <= LARGEST_RESIDUAL:
        raise InputError(
            f"ridge: too small for keys of this size in {matrix.dtype} (the relative residual is {error:.2g}, "
            f"{LARGEST_RESIDUAL:g} is allowed); use a larger ridge, smaller keys or float64"
        )
    return solved


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite, or not known because the function is traced."""
    # a finite sum has finite terms only; one that is not finite may have overflowed
    known = tensor.detach()
    return tracing() or bool(known.sum().isfinite()) or bool(known.isfinite().all())


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix-vector products, several times faster in this form than as a batched product with one column."""
    return (matrix * vector[..., None, :]).sum(-1)


def _add_outer(matrix: Tensor, vector: Tensor, weight: Tensor) -> Tensor:
    """matrix + weight vector vector^T."""
    return torch.addcmul(matrix, weight[..., None], vector[..., :, None] * vector[..., None, :])
