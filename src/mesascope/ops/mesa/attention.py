"""Mesa attention: ridge regression solved exactly at every time step, applied to the query."""

from typing import Literal, overload

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from mesascope.errors import InputError
from mesascope.ops.mesa.backends import choose
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.checks import Operands, check_cu_seqlens, check_regularizer, prepare
from mesascope.ops.mesa.chunked import solve_queries
from mesascope.ops.mesa.digits import too_few
from mesascope.ops.mesa.gated import decay_inside
from mesascope.ops.mesa.packing import pad, unpad
from mesascope.ops.mesa.portable import full_precision
from mesascope.ops.mesa.problem import Regularizer
from mesascope.ops.mesa.state import MesaState

Backend = Literal["auto", "native", "chunked", "reference"]


@overload
def mesa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    *,
    log_forget: Tensor | None = ...,
    write: Tensor | None = ...,
    regularizer: Regularizer = ...,
    state: MesaState | None = ...,
    return_state: Literal[False] = ...,
    backend: Backend = ...,
    cu_seqlens: Tensor | None = ...,
) -> Tensor: ...


@overload
def mesa_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ridge: Tensor,
    *,
    log_forget: Tensor | None = ...,
    write: Tensor | None = ...,
    regularizer: Regularizer = ...,
    state: MesaState | None = ...,
    return_state: Literal[True],
    backend: Backend = ...,
    cu_seqlens: Tensor | None = ...,
) -> tuple[Tensor, MesaState]: ...


def mesa_attention(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    v: Float[Tensor, "batch time heads d_v"],
    ridge: Float[Tensor, "..."],
    *,
    log_forget: Float[Tensor, "batch time heads"] | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    regularizer: Regularizer = "initial",
    state: MesaState | None = None,
    return_state: bool = False,
    backend: Backend = "auto",
    cu_seqlens: Integer[Tensor, " ends"] | None = None,
) -> Float[Tensor, "batch time heads d_v"] | tuple[Float[Tensor, "batch time heads d_v"], MesaState]:
    """o_t = Phi_t q_t, where Phi_t solves ridge regression of the values on the keys seen so far.

        Phi_t = argmin_Phi 1/2 sum_{i<=t} beta_i m_{t,i} ||v_i - Phi k_i||^2 + ridge/2 ||Phi||^2 = G_t H_t^-1
        G_t = gamma_t G_{t-1} + beta_t v_t k_t^T
        H_t = gamma_t H_{t-1} + beta_t k_t k_t^T,  H_0 = ridge I                       regularizer="initial"
        H_t = C_t + ridge I,  C_t = gamma_t C_{t-1} + beta_t k_t k_t^T,  C_0 = 0       regularizer="constant"

    "initial" is the layer of arXiv 2309.05858 (eqs. 4-20; the paper's lambda is 1 / ridge), where the ridge is
    forgotten like everything else: directions that no key excites wind up, their inverse growing like 1 / prod gamma.
    "constant" is that of arXiv 2506.05233, where the ridge stays. Without `log_forget` they are equal.

    Args:
        q, k, v: queries, keys (what is regressed on) and values (the targets), `[B, T, H, D]`; v may have another last
            size Dv. Half precision is computed in float32.
        ridge: positive penalty. One per head `[H]`, or broadcastable to `[B, H]`; one per head and coordinate `[H, D]`;
            or broadcastable to `[B, H, D]` if written with three dimensions. It may be float32 where q is half.
        log_forget: log gamma_t <= 0, `[B, T, H]`: the logarithm of the share of the past that token t keeps.
        write: beta_t >= 0, `[B, T, H]`: the weight of token t in the regression.
        regularizer: what happens to the ridge when the past is forgotten, as above.
        state: the state after earlier tokens. With "initial" it contains the ridge, and `ridge` is not used.
        return_state: also return the state after the last token.
        backend: "reference" solves once per token in float64; "chunked" is fast on any device, "native" on the CPU, if
            compiled kernels are installed. "auto" is native where they are, all tensors are on the CPU and the kernels
            support the case, and chunked otherwise.
        cu_seqlens: `[N + 1]` integers, increasing from 0 to T: q, k, v are N sequences concatenated along time, with
            B = 1, and tokens of one do not see another. States then are those of N rows.

    Returns:
        o, `[B, T, H, Dv]` in the dtype of q, or (o, state). Both are differentiable in every argument and in `state`;
        "reference" and "chunked" any number of times (reverse mode). If B, T or H is 0 the output is empty.

    Accuracy, as relative root-mean-square error against float64 for keys of norm 1 and queries in all directions alike:
    in float32 1e-5 for the output and all gradients if ridge is 0.1 to 10, and 1e-4 (gradient of the ridge 1e-3) at
    0.01; the gradient of the ridge, which is small where keys leave directions out, 1e-4 there; in float64 1e-10.
    Operands in float32 are computed in float64 where gains and condition numbers say that float32 would lose more:
    where keys leave directions out over many tokens, or forgetting winds up. "chunked" verifies every solve, and
    "native" leaves to it what float64 may not solve: it is refused when its residual exceeds 1 %, near a condition
    number of H_t of 1e13.

    Under torch.compile the op is not fused: it breaks the graph and runs as it is; torch.export is refused. Under
    torch.autocast it computes in float32. Where a tracer or a dispatch mode looks on, and inside torch.vmap and
    torch.func.grad, "auto" is chunked and "native" an error; under vmap values are not checked, but a failing solve is
    still an error of "chunked", and there and in a trace float32 stays float32. Forward-mode differentiation raises
    torch's own error.

    Raises:
        InputError: shapes, types, devices or values are not as above, or the problem is singular in this dtype: the
            ridge too small for the keys, or forgotten (use "constant"). A solve of the backward pass can fail as well.
    """
    if torch.compiler.is_compiling():
        _refuse_export()
        from mesascope.ops.mesa import uncompiled

        return uncompiled.mesa_attention(
            q,
            k,
            v,
            ridge,
            log_forget=log_forget,
            write=write,
            regularizer=regularizer,
            state=state,
            return_state=return_state,
            backend=backend,
            cu_seqlens=cu_seqlens,
        )
    check_regularizer(regularizer)
    operands = prepare(q, k, v, ridge, log_forget, write)
    if cu_seqlens is None:
        output, final = _attend(operands, regularizer, state, return_state, backend)
    else:
        lengths = check_cu_seqlens(cu_seqlens, operands)
        padded, final = _attend(pad(operands, lengths), regularizer, state, return_state, backend)
        output = unpad(padded, lengths)
    if output.dtype != q.dtype:
        output = output.to(q.dtype)
    return output if final is None else (output, final)


def mesa_attention_map(
    q: Float[Tensor, "batch time heads d"],
    k: Float[Tensor, "batch time heads d"],
    ridge: Float[Tensor, "..."],
    *,
    log_forget: Float[Tensor, "batch time heads"] | None = None,
    write: Float[Tensor, "batch time heads"] | None = None,
    regularizer: Regularizer = "initial",
) -> Float[Tensor, "batch heads time time"]:
    """The causal map alpha with o = alpha V: row t, column i, alpha_{t,i} = beta_i m_{t,i} k_i . H_t^-1 q_t.

    Signed and not normalised; zero for i > t. Arguments and errors as for `mesa_attention`; O(T^2) memory; in the dtype
    of q and differentiable any number of times.
    """
    if torch.compiler.is_compiling():
        _refuse_export()
        from mesascope.ops.mesa import uncompiled

        return uncompiled.mesa_attention_map(q, k, ridge, log_forget=log_forget, write=write, regularizer=regularizer)
    check_regularizer(regularizer)
    operands = prepare(q, k, k, ridge, log_forget, write).completed()
    if operands.empty():
        return q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + operands.empty_output().sum()
    with full_precision(q.device):
        case = Case(*operands, regularizer, None, False)
        case = (case.to(torch.float64) if too_few(case) else case).expanded()
        queries, keys = case.q.transpose(1, 2), case.k.transpose(1, 2)
        forget, strength = (None if gate is None else gate.transpose(1, 2) for gate in (case.log_forget, case.write))
        weights = solve_queries(queries, keys, case.ridge, forget, strength, regularizer, None) @ keys.mT
        weights = weights.tril() if forget is None else weights * decay_inside(forget.cumsum(-1))
        return (weights if strength is None else weights * strength[:, :, None]).to(q.dtype)


def _refuse_export() -> None:
    """Raise an error inside torch.export, which cannot leave a call as it is."""
    if torch.compiler.is_exporting():
        raise InputError(
            "mesa attention cannot be exported by torch.export, because every solve is verified by its values; export "
            "MesaState.step, or compile the model with torch.compile"
        )


def _attend(
    operands: Operands, regularizer: Regularizer, state: MesaState | None, return_state: bool, backend: str
) -> tuple[Tensor, MesaState | None]:
    """The output in the dtype it is computed in, and the state if it is wanted."""
    if state is not None:
        state.check(regularizer, operands.k, operands.v)
        state = MesaState(state.regularizer, state.matrix.resolve_neg(), state.association.resolve_neg())
    case = Case(*operands, regularizer, state, return_state)
    attend = choose(backend, case)
    if operands.empty():
        operands = operands.completed()
        batch, _, heads, d = operands.q.shape
        sizes = {"batch": batch, "heads": heads, "key_dim": d, "value_dim": operands.v.shape[-1]}
        start = MesaState.initial(operands.ridge, **sizes, regularizer=regularizer) if state is None else state
        return operands.empty_output(), start if return_state else None
    output, final = attend(case)
    if final is not None:
        final.require_finite()
    return output, final
