"""The accuracy that `mesa_attention` promises in float32, against the per-token solve in float64.

Queries and keys have norm 1 where nothing else is said. Errors are root mean squares relative to what is exact, for the
output and for the gradient of every operand.
"""

import pytest
import torch

from mesascope.errors import InputError
from mesascope.ops import mesa_attention, native_available
from mesascope.ops.mesa import causal_solve, digits, native, recursive

from .mesa_cases import FAST, REGULARIZERS, Case, Operands, draw, relative

HEADS = 8
"""The gradient of the ridge of one head is one number, a sum of terms of both signs that may be small by accident: its
error is told from the root mean square over heads."""


def normalised(case: Case, ridge: float, scale: float = 1.0) -> Operands:
    """Exactly representable in float32, so that both precisions solve the same problem."""
    operands = draw(case)
    units = {name: getattr(operands, name) / getattr(operands, name).norm(dim=-1, keepdim=True) for name in ("q", "k")}
    units["k"] = scale * units["k"]
    changed = {**vars(operands), **units, "ridge": torch.full_like(operands.ridge, ridge)}
    return Operands(**changed).to(torch.float32).to(torch.float64)


def errors(operands: Operands, backend: str) -> dict[str, float]:
    single = operands.to(torch.float32)
    through = ("output",)
    exact = {"output": operands.run("reference")["output"], **operands.gradients("reference", through=through)}
    found = {"output": single.run(backend)["output"], **single.gradients(backend, through=through)}
    return {name: relative(value, exact[name]) for name, value in found.items()}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("time", "d"), [(10, 4), (50, 20), (224, 20), (1000, 20), (300, 64)])
def test_moderate_ridge(time: int, d: int, ridge: float, backend: str) -> None:
    for name, error in errors(normalised(Case((1, time, HEADS, d, d)), ridge), backend).items():
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("ridge", "scale"), [(0.01, 1.0), (1.0, 10.0)], ids=["small ridge", "large keys"])
@pytest.mark.parametrize(("time", "d"), [(10, 4), (50, 20), (224, 20), (1000, 20), (300, 64)])
def test_small_ridge_or_large_keys(time: int, d: int, ridge: float, scale: float, backend: str) -> None:
    for name, error in errors(normalised(Case((1, time, HEADS, d, d)), ridge, scale), backend).items():
        assert error <= (1e-3 if name == "ridge" else 1e-4), f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(("time", "d"), [(50, 20), (1000, 8)])
def test_gates_and_a_state(time: int, d: int, regularizer: str, backend: str) -> None:
    """Forgetting by 5 % per token."""
    operands = normalised(Case((1, time, 2, d, d), regularizer, "forget and write", "diagonal", True), 1.0)
    for name, error in errors(operands, backend).items():
        assert error <= 1e-5, f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_gradient_of_weak_forgetting_over_a_long_time(regularizer: str, backend: str) -> None:
    """The sums behind it cancel, all the more the longer they are."""
    operands = normalised(Case((1, 4000, 1, 6, 6), regularizer, "forget"), 1.0)
    operands = Operands(**{**vars(operands), "log_forget": (0.01 * operands.log_forget).float().double()})
    assert errors(operands, backend)["log_forget"] <= 1e-5


@pytest.mark.parametrize("backend", FAST)
def test_no_drift_over_100_000_tokens(backend: str) -> None:
    operands = normalised(Case((1, 100_000, 1, 4, 4)), 1.0)
    found = operands.to(torch.float32).gradients(backend, through=("output",))
    exact = operands.gradients("chunked", through=("output",))  # in float64, where it equals the reference
    output = operands.to(torch.float32).run(backend)
    expected = operands.run("chunked")
    assert relative(output["output"], expected["output"]) <= 1e-4
    assert relative(output["matrix"], expected["matrix"]) <= 1e-4
    for name, gradient in found.items():
        assert relative(gradient, exact[name]) <= 1e-3, name


def test_no_drift_of_the_chunks_against_the_definition() -> None:
    operands = normalised(Case((1, 5000, 1, 4, 4)), 1.0)
    for name, found in operands.run("chunked").items():
        assert relative(found, operands.run("reference")[name]) <= 1e-12


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_off_by_its_rounding(dtype: torch.dtype, backend: str) -> None:
    """The results are rounded, by at most this; the gradient of a ridge in float32 is not."""
    rounding = torch.finfo(dtype).eps / 2
    operands = normalised(Case((1, 224, 2, 20, 20)), 1.0).to(dtype)
    operands = Operands(**{**vars(operands), "ridge": operands.ridge.float()})
    gradient = torch.randn(operands.v.shape, generator=torch.Generator().manual_seed(1)).to(dtype)

    def differentiate(given: Operands, name: str) -> dict[str, torch.Tensor]:
        leaves = given.with_gradients()
        output = leaves.run(name)["output"]
        output.backward(gradient.to(output.dtype))
        return {"output": output.detach(), **{name: leaf.grad for name, leaf in leaves.tensors().items()}}

    truth, found = differentiate(operands.to(torch.float64), "reference"), differentiate(operands, backend)
    for name, value in found.items():
        assert relative(value, truth[name]) <= (1e-5 if name == "ridge" else rounding), name


def test_chunks_end_before_they_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the least sum of log_forget is for: with more forgotten in a chunk, a solve in float32 is refused."""
    operands = normalised(Case((1, 1000, 1, 64, 64), "initial", "forget"), 1.0)
    operands = Operands(**{**vars(operands), "log_forget": (2 * operands.log_forget).float().double()})
    monkeypatch.setattr(causal_solve, "_REFINEMENTS", 0)
    monkeypatch.setattr(digits, "too_few", lambda case: False)
    exact = operands.run("reference")["output"]
    assert relative(operands.to(torch.float32).run("chunked")["output"], exact) <= 1e-3
    monkeypatch.setattr(recursive, "_MOST_FORGOTTEN", -8.0)
    with pytest.raises(InputError, match="log_forget: so much was forgotten"):
        operands.to(torch.float32).run("chunked")


def with_keys(operands: Operands, k: torch.Tensor) -> Operands:
    return Operands(**{**vars(operands), "k": (k / k.norm(dim=-1, keepdim=True)).float().double()})


def along(operands: Operands, noise: float) -> Operands:
    """Keys of norm 1 near one line, of both signs: all other directions keep nothing but the ridge."""
    generator = torch.Generator().manual_seed(2)
    line = torch.randn(operands.k.shape[-1], generator=generator, dtype=torch.float64)
    signs = torch.randn(operands.k.shape[:-1], generator=generator, dtype=torch.float64).sign()[..., None]
    k = signs * line / line.norm() + noise * operands.k
    return with_keys(operands, k)


def within(operands: Operands, share: float) -> Operands:
    """Keys of norm 1 in a subspace of a share of the dimensions, askew to the coordinates."""
    d = operands.k.shape[-1]
    basis = torch.randn(d, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    k = operands.k[..., : int(share * d)] @ torch.linalg.qr(basis).Q[: int(share * d)]
    return with_keys(operands, k)


def alternating(operands: Operands) -> Operands:
    """Keys along one code of numbers 1 and -1, of signs that alternate in time: sums over either are zero."""
    k = torch.ones_like(operands.k)
    k[:, 1::2] *= -1
    k[..., 1::2] *= -1
    return with_keys(operands, k)


def two_lines(operands: Operands) -> Operands:
    """Keys along a diagonal, and few along the coordinate that it leaves out."""
    k = torch.ones_like(operands.k)
    k[..., 0] = 0
    k[:, :: operands.k.shape[-1] // 2] = torch.eye(operands.k.shape[-1], dtype=k.dtype)[0]
    return with_keys(operands, k)


LEFT_OUT = {
    "alternating": alternating,
    "two lines": two_lines,
    "zero mean": lambda operands: with_keys(operands, operands.k - operands.k.mean(-1, keepdim=True)),
    "line": lambda operands: along(operands, 0.0),
    "near a line": lambda operands: along(operands, 0.03),
    "subspace": lambda operands: within(operands, 0.25),
}


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("keys", LEFT_OUT)
@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
@pytest.mark.parametrize(("time", "d"), [(50, 20), (800, 20), (300, 64)])
def test_keys_that_leave_directions_out(time: int, d: int, ridge: float, keys: str, backend: str) -> None:
    """The condition number of H_t grows with the number of tokens; the gradient of the ridge is all but zero there."""
    operands = LEFT_OUT[keys](normalised(Case((1, time, HEADS, d, d)), ridge))
    for name, error in errors(operands, backend).items():
        assert error <= (5e-5 if name == "ridge" else 1e-5), f"{name}: {error:.1e}"


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("keys", LEFT_OUT)
@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("share", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_forgetting_what_keys_leave_out(regularizer: str, share: float, ridge: float, keys: str, backend: str) -> None:
    """The ridge is forgotten in these directions, and gains grow."""
    operands = LEFT_OUT[keys](normalised(Case((1, 300, HEADS, 16, 16), regularizer, "forget and write"), ridge))
    assert operands.log_forget is not None
    operands = Operands(**{**vars(operands), "log_forget": (share * operands.log_forget).float().double()})
    for name, error in errors(operands, backend).items():
        assert error <= (3e-5 if name in ("ridge", "log_forget") else 1e-5), f"{name}: {error:.1e}"


@pytest.mark.skipif(not native_available(), reason="decided for compiled kernels only")
@pytest.mark.parametrize(
    ("gates", "time", "keys", "ridge", "operand", "limit"),
    [
        ("plain", 200, "random", 0.001, "k", 1e-4),
        ("plain", 200, "line", 0.1, "v", 1e-5),
        ("forget", 200, "random", 0.01, "log_forget", 1e-4),
        ("forget", 50, "random", 0.1, "log_forget", 1e-5),
        ("forget", 200, "subspace", 0.1, "v", 1e-5),
    ],
)
def test_large_gains_and_condition_numbers_are_computed_in_float64(
    gates: str, time: int, keys: str, ridge: float, operand: str, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the limits of the native kernels are for: beyond them float32 would lose the promised digits."""
    operands = normalised(Case((1, time, HEADS, 64, 64), gates=gates), ridge)
    operands = LEFT_OUT[keys](operands) if keys in LEFT_OUT else operands
    assert errors(operands, "native")[operand] <= limit
    monkeypatch.setattr(native, "_accurate", lambda case, evidence: True)
    assert errors(operands, "native")[operand] > limit


@pytest.mark.skipif(not native_available(), reason="decided for compiled kernels only")
@pytest.mark.parametrize("gates", ["plain", "forget and write"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize(("time", "d"), [(50, 20), (600, 20), (2000, 64)])
def test_float32_is_kept_where_keys_leave_nothing_out(
    time: int, d: int, regularizer: str, gates: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the sequence is, and although nothing is left of the ridge."""

    def refuse(case: object) -> None:
        raise AssertionError("computed in float64")

    monkeypatch.setattr(native, "_in_double", refuse)
    operands = normalised(Case((1, time, 2, d, d), regularizer, gates), 1.0)
    if operands.log_forget is not None:
        operands = Operands(**{**vars(operands), "log_forget": 0.3 * operands.log_forget})
    operands.to(torch.float32).gradients("native", through=("output",))


@pytest.mark.parametrize("backend", FAST)
def test_a_tiny_ridge_in_float64(backend: str) -> None:
    """1e-9 beside keys of norm 1, with fewer tokens than coordinates at first."""
    operands = normalised(Case((1, 60, 2, 20, 20)), 1e-9)
    found = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, backend=backend)
    exact = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, backend="reference")
    assert relative(found, exact) <= 1e-6
