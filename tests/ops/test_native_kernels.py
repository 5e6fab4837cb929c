"""The compiled kernels themselves: both layouts, every instruction set there is, any number of threads."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from called_kernels import CalledKernels
from mesascope.ops import linear_attention, mesa_attention, native, softmax_attention
from mesascope.ops.kernels import native_kernels
from mesascope.ops.linear import linear_attention_product
from mesascope.ops.mesa import native_operators, native_supports
from mesascope.ops.mesa.case import Case as BackendCase
from mesascope.ops.softmax import softmax_attention_product

from .mesa_cases import REGULARIZERS, Case, draw, relative

KERNELS = native_kernels()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="this run is without compiled kernels")

SHAPES = [
    *((3, 21, 7, 5, 6), (1, 50, 16, 20, 20), (2, 35, 1, 33, 17), (1, 17, 2, 64, 64), (1, 9, 3, 1, 2)),
    # rows that are too many to be kept for the way back in time; matrices of more registers than a tile has
    *((1, 90, 8, 20, 20), (1, 20, 1, 100, 112), (1, 420, 1, 96, 112)),
]


INSTRUCTION_SETS = {} if KERNELS is None else KERNELS.instruction_sets()


@pytest.fixture(params=[name for name, supported in INSTRUCTION_SETS.items() if supported])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    assert KERNELS is not None
    before = KERNELS.instruction_set()
    KERNELS.use_instruction_set(request.param)
    yield request.param
    KERNELS.use_instruction_set(before)


def test_the_best_instruction_set_is_chosen_and_none_that_the_processor_lacks() -> None:
    assert KERNELS is not None
    before = KERNELS.instruction_set()
    assert before == next(name for name, supported in INSTRUCTION_SETS.items() if supported)
    assert INSTRUCTION_SETS["baseline"]
    for name, supported in {**INSTRUCTION_SETS, "mmx": False}.items():
        if not supported:
            with pytest.raises(ValueError, match=f"instruction set: .*{name}"):
                KERNELS.use_instruction_set(name)
            assert KERNELS.instruction_set() == before


def test_operators_refuse_tensors_of_several_dtypes() -> None:
    q, v = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(2, 5, 3, 4)
    for operator in (native.linear_attention_operator, native.softmax_attention_operator):
        with pytest.raises(ValueError, match=r"tensors: all of them must be on the CPU and of one dtype"):
            operator(q, q, v)


class Observer(TorchDispatchMode):
    """Writes down the operators of this package that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mesascope":
            self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention])
def test_operators_are_there_for_those_who_look(attend: Callable[..., Tensor]) -> None:
    operands = [torch.randn(2, 6, 4, 3, requires_grad=True) for _ in range(3)]
    results = []
    for observer in (nullcontext(), Observer()):
        with observer:
            output = attend(*operands)
            results.append([output, *torch.autograd.grad(output, operands, torch.ones_like(output))])
    for direct, observed in zip(*results, strict=True):
        assert torch.equal(direct, observed)
    name = f"mesascope::{attend.__name__}"
    assert isinstance(observer, Observer)
    assert observer.seen == [name, f"{name}_backward"]
    with FakeTensorMode():
        fake = [torch.empty(2, 6, 4, 3) for _ in range(3)]
        assert attend(*fake).shape == (2, 6, 4, 3)
        assert not native_supports(BackendCase(*fake, torch.ones(4), None, None, "initial", None, False))


def mesa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return mesa_attention(q, k, v, torch.ones(q.shape[2]), backend="native")


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention, mesa])
def test_gradients_that_are_not_what_lies_in_memory(attend: Callable[..., Tensor]) -> None:
    operands = [torch.randn(2, 6, 4, 3, requires_grad=True) for _ in range(3)]
    output, gradient = attend(*operands), torch.randn(2, 6, 4, 3)
    negated = torch.complex(gradient, -gradient).conj().imag
    assert negated.is_neg()
    zero = torch._efficientzerotensor((2, 6, 4, 3))
    for plain, other in ((gradient, negated), (torch.zeros(2, 6, 4, 3), zero)):
        expected, found = (torch.autograd.grad(output, operands, g, retain_graph=True) for g in (plain, other))
        for one, another in zip(expected, found, strict=True):
            assert torch.equal(one, another)


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention])
def test_gradients_in_batches(attend: Callable[..., Tensor]) -> None:
    operands = [torch.randn(2, 6, 4, 3, requires_grad=True) for _ in range(3)]
    output, several = attend(*operands), torch.randn(5, 2, 6, 4, 3)
    batched = torch.autograd.grad(output, operands, several, is_grads_batched=True, retain_graph=True)
    for index, gradient in enumerate(several):
        for found, expected in zip(
            batched, torch.autograd.grad(output, operands, gradient, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(found[index], expected)


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention, mesa])
def test_a_second_derivative_is_an_error_whatever_the_gradient_is(attend: Callable[..., Tensor]) -> None:
    operands = [torch.randn(2, 6, 4, 3, requires_grad=True) for _ in range(3)]
    (first,) = torch.autograd.grad(attend(*operands).sum(), operands[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|differentiable once"):
        torch.autograd.grad(first.square().sum() + operands[1].sum(), operands[1])


@pytest.mark.parametrize("layout", ["lanes", "columns"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mesa_in_both_layouts(
    shape: tuple[int, ...],
    regularizer: str,
    layout: str,
    instruction_set: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_operators, "_LAYOUT", layout)
    operands = draw(Case(shape, regularizer, "forget and write", "row diagonal"))
    expected = {**operands.run("reference"), **operands.gradients("reference")}
    found = {**operands.run("native"), **operands.gradients("native")}
    for name, value in expected.items():
        assert relative(found[name], value) <= 1e-10, name


@pytest.mark.parametrize("time", [1, 2, 16, 33, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("attend", "product"),
    [(linear_attention, linear_attention_product), (softmax_attention, softmax_attention_product)],
    ids=["linear", "softmax"],
)
def test_linear_and_softmax(attend, product, dtype: torch.dtype, time: int, instruction_set: str) -> None:  # type: ignore[no-untyped-def]
    for batch, heads, d, d_v in ((3, 7, 5, 6), (5, 16, 20, 20), (1, 4, 1, 3)):
        drawn = draw(Case((batch, time, heads, d, d_v)))
        exact = [operand.detach().requires_grad_() for operand in (drawn.q, drawn.k, drawn.v)]
        given = [operand.detach().to(dtype).requires_grad_() for operand in exact]
        output, expected = attend(*given), product(*exact)
        cotangent = torch.randn(expected.shape, dtype=torch.float64)
        pairs = [(output, expected)]
        pairs += zip(
            torch.autograd.grad(output, given, cotangent.to(dtype)),
            torch.autograd.grad(expected, exact, cotangent),
            strict=True,
        )
        for found, truth in pairs:
            assert relative(found, truth) <= (2e-6 if dtype == torch.float32 else 1e-13)


def test_the_number_of_threads_changes_no_bit() -> None:
    operands = draw(Case((5, 40, 9, 6, 6))).to(torch.float32)

    def run(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        return [*operands.run("native").values(), *operands.gradients("native").values()]

    assert all(torch.equal(one, other) for one, other in zip(run(1), run(3), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_is_used_again_only_when_no_tensor_holds_it(dtype: torch.dtype) -> None:
    operands = [torch.randn(1, 100_003, 1, 7, dtype=dtype) for _ in range(3)]
    first = linear_attention(*operands)
    assert first.dtype == dtype
    assert first.shape == operands[0].shape
    assert first.is_contiguous()
    address, part = first.data_ptr(), first[:, 1:]
    del first
    assert linear_attention(*operands).data_ptr() != address
    part.fill_(1)
    assert bool((part == 1).all())
    del part
    assert linear_attention(*operands).data_ptr() == address


def test_large_results_do_not_change_when_others_are_computed() -> None:
    """Large enough to live in memory that is used again."""
    drawn = draw(Case((2, 1100, 8, 16, 16))).to(torch.float32)
    first = mesa_attention(drawn.q, drawn.k, drawn.v, drawn.ridge)
    kept = first.clone()
    second = mesa_attention(drawn.k, drawn.q, drawn.v, drawn.ridge)
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)


def test_softmax_with_logits_far_apart() -> None:
    """Weights that underflow are zero, and no exponential overflows."""
    q = torch.tensor([1e4, -1e4, 1e4, 1e-30]).reshape(1, 4, 1, 1).expand(1, 4, 4, 1).contiguous().requires_grad_()
    v = torch.arange(16.0).reshape(1, 4, 4, 1).requires_grad_()
    outputs = [attend(q, q, v) for attend in (softmax_attention, softmax_attention_product)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(output.sum(), (q, v)) for output in outputs]
    for found, expected in zip(*gradients, strict=True):
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("time", "size", "kernel_used"),
    [(50, 20, True), (128, 128, True), (256, 64, True), (257, 64, False), (40, 200, False), (513, 20, False)],
)
def test_softmax_kernel_is_used_where_its_tokens_fit_the_cache(
    time: int, size: int, kernel_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = CalledKernels(monkeypatch, native)
    softmax_attention(*torch.randn(3, 1, time, 4, size))
    assert called.names == ["softmax_forward"] * kernel_used
