"""Every method computes what its name says, with gradients, and what is not installed is left out with one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mesascope.benchmarks import ours, peers
from mesascope.benchmarks.accuracy import relative_errors, solve_per_step
from mesascope.benchmarks.cholesky import cholesky_mesa_attention, with_cholesky
from mesascope.benchmarks.methods import BOTH_PASSES, Method, Operands, Shape, draw_operands, prepare
from mesascope.errors import InputError
from mesascope.nn import Transformer
from oracles import attention as oracle
from training.tiny import HYBRID

SHAPE = Shape(8, 7, 5)
METHODS = [*ours.our_methods()[0], *peers.peer_methods()[0]]


def exact(problem: str, operands: Operands) -> Tensor:
    """The output in float64, by definition."""
    q, k, v, ridge = (operand.double() for operand in (operands.q, operands.k, operands.v, operands.ridge))
    if problem == "mesa":
        return solve_per_step(q, k, v, ridge)
    weights = torch.einsum("bthd,bshd->bhts", q, k)
    future = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)
    if problem == "softmax":
        weights = (weights / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights.masked_fill(future, 0), v)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_compute_what_they_are_named_after(method: Method) -> None:
    operands = draw_operands(SHAPE)
    found = prepare(method, operands, "forward")()
    assert isinstance(found, Tensor)
    assert not found.requires_grad
    found = found.transpose(1, 2) if method.head_major else found
    # conjugate gradients stop early by design
    tolerance = 1e-2 if "CG" in method.name else 1e-5
    torch.testing.assert_close(found, exact(method.problem, operands).float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_return_gradients_of_all_inputs(method: Method) -> None:
    operands = draw_operands(SHAPE)
    found = prepare(method, operands, "forward+backward")()
    assert isinstance(found, tuple)
    leaves = [operand.clone().requires_grad_() for operand in (operands.q, operands.k, operands.v, operands.ridge)]
    inputs = leaves if method.problem == "mesa" else leaves[:3]
    out = exact(method.problem, Operands(*leaves, operands.gradient))
    expected = torch.autograd.grad(out, inputs, operands.gradient.double())
    tolerance = 5e-2 if "CG" in method.name else 1e-4
    for index, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        mine = mine.transpose(1, 2) if method.head_major and index < 3 else mine
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert not any(operand.requires_grad for operand in vars(operands).values())


def test_operands_have_the_shape_and_are_the_same_every_time() -> None:
    one, two = draw_operands(Shape(1024, 5, 3)), draw_operands(Shape(1024, 5, 3))
    assert one.q.shape == one.v.shape == one.gradient.shape == (256, 5, 4, 3)
    assert one.ridge.tolist() == [1.0] * 4
    torch.testing.assert_close(one.k.norm(dim=-1), torch.ones(256, 5, 4))
    for name, operand in vars(one).items():
        assert operand.equal(getattr(two, name))
    assert draw_operands(Shape(6, 2, 3)).q.shape == (3, 2, 2, 3)


def test_every_name_is_used_once() -> None:
    names = [method.name for method in METHODS]
    assert len(set(names)) == len(names)
    assert {ours.LINEAR, ours.SOFTMAX, peers.SDPA, peers.MASKED_PRODUCT, peers.CHOLESKY} <= set(names)


def test_maps_must_fit_into_memory() -> None:
    (product,) = (method for method in METHODS if method.name == peers.MASKED_PRODUCT)
    for passes in BOTH_PASSES:
        assert product.fits(Shape(16, 2048, 64), passes)
        assert not product.fits(Shape(16, 16_384, 64), passes)


def test_cholesky_form_agrees_with_the_definition(generator: torch.Generator) -> None:
    q, k, v, g = (torch.randn(2, 6, 3, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    ridge = torch.tensor([0.3, 1.0, 20.0], dtype=torch.float64)
    inputs = [operand.requires_grad_() for operand in (q, k, v, ridge)]
    out = cholesky_mesa_attention(*inputs)
    arrays = [operand.detach().numpy() for operand in inputs]
    torch.testing.assert_close(out, torch.from_numpy(oracle.mesa_attention(*arrays)), rtol=1e-10, atol=1e-10)
    gradients = oracle.complex_step_gradients(oracle.mesa_attention, arrays, g.numpy())
    for found, expected in zip(torch.autograd.grad(out, inputs, g), gradients, strict=True):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-10)


def test_the_peer_of_the_hybrid_step_is_the_same_model(generator: torch.Generator) -> None:
    plain, peer = (Transformer(HYBRID.model, torch.Generator().manual_seed(1)).double() for _ in range(2))
    assert with_cholesky(peer) == 1
    assert with_cholesky(Transformer(HYBRID.model)) == 1
    tokens = HYBRID.task.sample(3, generator, dtype=torch.float64).tokens
    found, expected = peer(tokens), plain(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.sum().backward()
    expected.sum().backward()
    for mine, theirs in zip(peer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_the_yardstick_of_errors_agrees_with_the_definition(generator: torch.Generator) -> None:
    q, k, v = (torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    ridge = torch.tensor([0.3, 1.0, 20.0], dtype=torch.float64)
    expected = oracle.mesa_attention(q.numpy(), k.numpy(), v.numpy(), ridge.numpy())
    torch.testing.assert_close(solve_per_step(q, k, v, ridge), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)
    assert solve_per_step(q.float(), k.float(), v.float(), ridge.float()).dtype == torch.float64


def test_errors_are_relative() -> None:
    methods = [
        Method("mesa", "exact", solve_per_step),
        Method("mesa", "one per cent off", lambda *operands: 1.01 * solve_per_step(*operands)),
        Method("mesa", "too slow", lambda *operands: pytest.fail("does not fit"), lambda shape, passes: False),
        Method("softmax", "other", lambda *operands: pytest.fail("another problem")),
    ]
    assert relative_errors(methods, SHAPE) == {"mesa: exact": 0.0, "mesa: one per cent off": pytest.approx(0.01)}


def test_backends_that_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, *, backend: str = "auto") -> Tensor:
        if backend == "native":
            raise InputError("backend: got 'native', but the kernels are not built")
        return solve_per_step(q, k, v, ridge).float()

    monkeypatch.setattr(ours, "mesa_attention", attention)
    methods, left_out = ours.our_methods()
    assert [method.name for method in methods] == ["mesa: chunked", ours.SOFTMAX, ours.LINEAR]
    assert left_out == ["mesa: native is left out: backend: got 'native', but the kernels are not built"]
    # without native kernels linear attention needs a T x T map, and the chunked mesa layer does not
    assert [method.fits(Shape(16, 16_384, 64), "forward") for method in methods] == [True, True, False]


def test_backends_that_are_there_run(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def attention(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor, *, backend: str = "auto") -> Tensor:
        called.append(backend)
        return solve_per_step(q, k, v, ridge).float()

    monkeypatch.setattr(ours, "mesa_attention", attention)
    methods, left_out = ours.our_methods()
    assert [method.name for method in methods][:2] == [ours.NATIVE, "mesa: chunked"]
    assert called == ["native", "chunked"]
    assert not left_out
    assert all(method.fits(Shape(16, 16_384, 64), "forward") for method in methods)


REFERENCES = """
import torch
from einops import rearrange

calls = []


def naive_mesa_net_exact(q, k, v, g, lamb, beta):
    calls.append((g, lamb, beta, None, None))
    return v, None, None


def naive_mesa_net_CG(q, k, v, g, lamb, beta, chunk_size, max_CG_iteration):
    calls.append((g, lamb, beta, chunk_size, max_CG_iteration))
    return v, None, None
"""


@pytest.fixture
def fla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like fla-core, which cannot be imported, with references that only remember how they were called."""
    folder = tmp_path / "fla" / "ops" / "mesa_net"
    folder.mkdir(parents=True)
    (tmp_path / "fla" / "__init__.py").write_text("raise ImportError('no triton')\n")
    (tmp_path / "einops.py").write_text("def rearrange(): ...\n")
    (folder / "naive.py").write_text(REFERENCES)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize(("time", "chunk"), [(50, 50), (128, 64), (224, 56), (67, 1)])
def test_references_are_called_with_gates_that_do_nothing(fla: Path, time: int, chunk: int) -> None:
    methods, left_out = peers.peer_methods()
    assert [method.name for method in methods][-2:] == [peers.FLA_EXACT, peers.FLA_CG]
    assert not left_out
    operands = draw_operands(Shape(8, time, 3))
    ridge = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for method, expected in zip(methods[-2:], ((None, None), (chunk, 30)), strict=True):
        assert method.attend(operands.q, operands.k, operands.v, ridge) is operands.v
        log_forget, penalty, write, *options = _module(method).calls[-1]
        assert log_forget.equal(torch.zeros(2, time, 4))
        assert penalty.equal(ridge[:, None].expand(4, 3))
        assert write.equal(torch.ones(2, time, 4))
        assert tuple(options) == expected


def _module(method: Method) -> Any:
    """The module of references that a method was bound to."""
    return method.attend.args[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("missing", ["fla", "einops", "the file"])
def test_missing_references_are_one_line(fla: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    find = peers.importlib.util.find_spec
    if missing == "the file":
        (fla / "naive.py").unlink()
    else:
        monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    methods, (line,) = peers.peer_methods()
    assert not any("fla" in method.name for method in methods)
    expected = (
        "mesa: fla-core exact and fla-core CG-30 are left out: get them with `pip install 'fla-core>=0.6' einops`"
    )
    assert line == expected


def test_slow_references_are_kept_from_large_shapes(fla: Path) -> None:
    *_, exact_reference, gradients = peers.peer_methods()[0]
    paper, middle, long = Shape(1024, 50, 20), Shape(16, 512, 64), Shape(16, 2048, 64)
    assert [exact_reference.fits(shape, "forward") for shape in (paper, middle, long)] == [True, True, False]
    assert [exact_reference.fits(shape, "forward+backward") for shape in (paper, middle, long)] == [True, False, False]
    (factorisation,) = (method for method in peers.peer_methods()[0] if method.name == peers.CHOLESKY)
    assert [factorisation.fits(shape, "forward") for shape in (paper, middle, long)] == [True, True, False]
    assert all(gradients.fits(shape, "forward+backward") for shape in (paper, middle, long))
