"""Mesa attention inside torch.compile, torch.vmap, torch.func.grad and autocast."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mesascope.errors import InputError
from mesascope.nn import LayerNorm, MesaAttention, Norm, UnitNorm
from mesascope.ops import (
    MesaState,
    linear_attention,
    mesa_attention,
    mesa_attention_map,
    native_available,
    softmax_attention,
)
from mesascope.ops.mesa.attention import Backend

from .mesa_cases import BACKENDS, REGULARIZERS, Case, Operands, draw, relative

PORTABLE = ("reference", "chunked")
portable = pytest.mark.parametrize("backend", PORTABLE)
regularizers = pytest.mark.parametrize("regularizer", REGULARIZERS)
Run = Callable[..., dict[str, Tensor]]


def case(regularizer: str) -> tuple[list[str], list[Tensor], Callable[[str], Run]]:
    """Names and tensors of operands, and what makes a function of them with a backend."""
    operands = draw(Case((2, 12, 2, 3, 2), regularizer, "forget and write", "row diagonal", True))

    def with_backend(backend: str) -> Run:
        return lambda *tensors: Operands(regularizer, *tensors).run(backend)

    return list(operands.tensors()), list(operands.tensors().values()), with_backend


@portable
@regularizers
def test_vmap_over_each_operand(regularizer: str, backend: str) -> None:
    names, tensors, with_backend = case(regularizer)
    run = with_backend(backend)
    for position in range(len(names)):
        stacked = torch.stack([tensors[position], 0.9 * tensors[position]], dim=1)
        mapped = [1 if index == position else None for index in range(len(names))]
        found = torch.vmap(run, tuple(mapped))(*tensors[:position], stacked, *tensors[position + 1 :])
        for row in range(2):
            expected = run(*tensors[:position], stacked[:, row], *tensors[position + 1 :])
            for name, result in expected.items():
                assert relative(found[name][row], result) <= 1e-12, f"{name} over {names[position]}"


@portable
@regularizers
def test_vmap_and_grad_in_either_order(regularizer: str, backend: str) -> None:
    _, (q, *others), with_backend = case(regularizer)
    run, stacked = with_backend(backend), torch.stack([q, -q, 2 * q])

    def loss(q: Tensor, k: Tensor) -> Tensor:
        return sum((result.square().sum() for result in run(q, k, *others[1:]).values()), torch.zeros(()))

    each = torch.stack([torch.func.grad(loss, 1)(row, others[0]) for row in stacked])
    per_sample = torch.vmap(torch.func.grad(loss, 1), (0, None))(stacked, others[0])
    assert relative(per_sample, each) <= 1e-12
    total = torch.func.grad(lambda k: torch.vmap(loss, (0, None))(stacked, k).sum())(others[0])
    assert relative(total, each.sum(0)) <= 1e-12


def test_auto_takes_the_chunks_where_torch_func_transforms() -> None:
    _, (q, k, v, ridge, *_), _ = case("initial")
    stacked = torch.stack([k, 0.9 * k])

    def loss(k: Tensor, backend: str) -> Tensor:
        return mesa_attention(q, k, v, ridge, backend=backend).square().sum()

    for transformed, operand in (
        (torch.vmap, stacked),
        (torch.func.grad, k),
        (lambda function: torch.vmap(torch.func.grad(function)), stacked),
    ):
        found, expected = (transformed(partial(loss, backend=name))(operand) for name in ("auto", "chunked"))
        assert torch.equal(found, expected)
        with pytest.raises(InputError, match=r"backend: got 'native', .*(not inside torch.vmap|no compiled kernels)"):
            transformed(partial(loss, backend="native"))(operand)


@pytest.mark.parametrize("attend", [linear_attention, softmax_attention], ids=["linear", "softmax"])
def test_linear_and_softmax_attention_transform(attend: Callable[..., Tensor]) -> None:
    _, (q, k, v, *_), _ = case("initial")
    stacked, weights = torch.stack([k, -k]), torch.randn(v.shape, dtype=torch.float64)

    def loss(k: Tensor) -> Tensor:
        return (attend(q, k, v) * weights).sum()

    each = [row.clone().requires_grad_() for row in stacked]
    losses = [loss(row) for row in each]
    assert relative(torch.vmap(loss)(stacked), torch.stack(losses)) <= 1e-12
    gradients = torch.stack(torch.autograd.grad(sum(losses), each))
    assert relative(torch.vmap(torch.func.grad(loss))(stacked), gradients) <= 1e-12


def test_vmap_of_a_jacobian() -> None:
    operands = draw(Case((1, 4, 1, 2, 1)))
    jacobian = torch.func.jacrev(lambda k: mesa_attention(operands.q, k, operands.v, operands.ridge, backend="chunked"))
    expected = torch.autograd.functional.jacobian(
        lambda k: mesa_attention(operands.q, k, operands.v, operands.ridge, backend="reference"), operands.k
    )
    assert relative(jacobian(operands.k), expected) <= 1e-12


def test_a_failing_solve_is_an_error_also_where_values_are_not_checked() -> None:
    keys = 1e3 * torch.ones(2, 1, 4, 3, 5)
    ridge = torch.full((3,), 1e-6)
    with pytest.raises(InputError, match="ridge: the smallest is 1e-06, too small"):
        torch.vmap(lambda k: mesa_attention(k, k, k, ridge, backend="chunked"))(keys)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own use of it
def test_forward_mode_is_refused_rather_than_wrong() -> None:
    operands = draw(Case((1, 4, 1, 2, 1)))
    with torch.autograd.forward_ad.dual_level():
        keys = torch.autograd.forward_ad.make_dual(operands.k, operands.k)
        for backend in ("auto", "chunked"):
            with pytest.raises(RuntimeError, match="jvp"):
                mesa_attention(operands.q, keys, operands.v, operands.ridge, backend=backend)
        with pytest.raises(RuntimeError, match="jvp"):
            linear_attention(operands.q, keys, operands.v)
        tangent = torch.autograd.forward_ad.unpack_dual(softmax_attention(operands.q, keys, operands.v)).tangent
    scaled = torch.ones((), dtype=torch.float64, requires_grad=True)
    output = softmax_attention(operands.q, scaled * operands.k, operands.v)
    for index in range(output.numel()):
        (slope,) = torch.autograd.grad(output.flatten()[index], scaled, retain_graph=True)
        assert slope == pytest.approx(float(tangent.flatten()[index]), abs=1e-12)


COMPILING = """
import torch
from mesascope import MesaState, mesa_attention
from mesascope.errors import InputError
from mesascope.ops import linear_attention, mesa_attention_map, softmax_attention

generator = torch.Generator().manual_seed(0)
q, k, v = (torch.randn(2, 12, 2, 3, generator=generator, requires_grad=True) for _ in range(3))
ridge, forget = torch.ones(2, requires_grad=True), -0.1 * torch.rand(2, 12, 2, generator=generator)

def around():
    output, state = mesa_attention(q.sin(), k, v, ridge.exp(), log_forget=forget, return_state=True)
    return [2 * output, state.matrix + 1, mesa_attention_map(q, k, ridge).cos()]

results = []
for function in (around, torch.compile(around, backend="aot_eager")):
    values = function()
    results.append(values + list(torch.autograd.grad(sum(value.sum() for value in values), [q, k, v, ridge])))
print(all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*results)))

def negative():
    return mesa_attention(q, k, v, -ridge)

try:
    torch.compile(negative, backend="aot_eager")()
except InputError as error:
    print(error)

def step(regularizer, matrix, association):
    state = MesaState(regularizer, matrix, association)
    return state.step(q[:, 0], k[:, 0], v[:, 0], ridge, log_forget=forget[:, 0])[0]

compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
for regularizer in ("initial", "constant"):
    state = MesaState.initial(ridge, batch=2, heads=2, key_dim=3, value_dim=3, regularizer=regularizer)
    values = regularizer, state.matrix, state.association
    print(torch.allclose(step(*values), compiled(*values)))

for attend in (linear_attention, softmax_attention):
    opaque = torch.compile(lambda q: 2 * attend(q, k, v), backend="aot_eager", fullgraph=True)
    print(torch.allclose(opaque(q), 2 * attend(q, k, v)))

class Exported(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *operands):
        return self.function(*operands)

for attend in (lambda q: mesa_attention(q, k, v, ridge), lambda q: mesa_attention_map(q, k, ridge)):
    try:
        torch.export.export(Exported(attend), (q,))
    except InputError as error:
        print(error)
values = state.matrix, state.association
program = torch.export.export(Exported(lambda *values: step("constant", *values)), values)
print(torch.allclose(program.module()(*values), step("constant", *values)))
"""


def test_compiling() -> None:
    """The op breaks the graph, and what is around it is compiled; a step is one graph, and others are opaque in theirs.

    In a fresh interpreter, in which shapes are not checked: the compiler cannot trace such checks.
    """
    command = [sys.executable, "-c", COMPILING]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
    error = "ridge: got a smallest value of -1, but it must be greater than 0"
    *compiled, map_refused, layer_refused, exported = printed.splitlines()
    assert compiled == ["True", error, "True", "True", "True", "True"]
    assert map_refused == layer_refused
    assert map_refused.startswith("mesa attention cannot be exported by torch.export")
    assert exported == "True"


@pytest.mark.usefixtures("unchecked_shapes")
def test_a_tracer_sees_what_depends_on_its_input() -> None:
    operands = draw(Case((1, 6, 2, 3, 3)))

    def attend(q: Tensor, backend: Backend = "auto") -> Tensor:
        return mesa_attention(q, operands.k, operands.v, operands.ridge, backend=backend)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(attend, (operands.q,))  # type: ignore[no-untyped-call]
        assert relative(traced(2 * operands.q), attend(2 * operands.q)) <= 1e-12
        if native_available():
            with pytest.raises(InputError, match=r"backend: got 'native', .* a tracer or a dispatch mode"):
                torch.jit.trace(lambda q: attend(q, "native"), (operands.q,))  # type: ignore[no-untyped-call]


def test_a_dispatch_mode_sees_operations() -> None:
    operands = draw(Case((1, 6, 2, 3, 3)))
    with FlopCounterMode(display=False) as counter:
        mesa_attention(operands.q, operands.k, operands.v, operands.ridge)
    assert counter.get_total_flops() > 0


@pytest.mark.skipif(not native_available(), reason="this run is without compiled kernels")
def test_gradients_of_the_native_kernels_are_not_mapped() -> None:
    operands = draw(Case((1, 6, 2, 3, 3)))
    keys = operands.k.requires_grad_()
    o = mesa_attention(operands.q, keys, operands.v, operands.ridge)
    gradients = torch.stack([o.detach()] * 2)
    refused = pytest.raises(RuntimeError, match=r"its gradients cannot be mapped .* ask for one at a time")
    with refused:
        torch.autograd.grad(o, keys, gradients, retain_graph=True, is_grads_batched=True)
    with refused:
        torch.vmap(lambda g: torch.autograd.grad(o, keys, g, retain_graph=True)[0])(gradients)


def test_gradients_of_the_chunked_form_are_mapped_by_vmap_alone() -> None:
    operands = draw(Case((1, 6, 2, 3, 3)))
    keys = operands.k.requires_grad_()
    o = mesa_attention(operands.q, keys, operands.v, operands.ridge, backend="chunked")
    gradients = torch.randn(2, *o.shape, dtype=o.dtype)
    mapped = torch.vmap(lambda g: torch.autograd.grad(o, keys, g, retain_graph=True)[0])(gradients)
    for found, g in zip(mapped, gradients, strict=True):
        torch.testing.assert_close(found, torch.autograd.grad(o, keys, g, retain_graph=True)[0])
    with pytest.raises(RuntimeError, match=r"call torch.autograd.grad inside torch.vmap instead"):
        torch.autograd.grad(o, keys, gradients, is_grads_batched=True)


def test_packing_is_refused_inside_vmap() -> None:
    operands = draw(Case((1, 6, 2, 3, 3)))

    def attend(q: Tensor) -> Tensor:
        ends = torch.tensor([0, 2, 6])
        return mesa_attention(q, operands.k, operands.v, operands.ridge, cu_seqlens=ends)

    with pytest.raises(InputError, match=r"cu_seqlens: packed sequences cannot be mapped by torch\.vmap"):
        torch.vmap(attend)(torch.stack([operands.q] * 2))
    # what vmap does not map may be packed
    mapped = torch.vmap(lambda x: x * attend(operands.q))(torch.ones(2, 1))
    torch.testing.assert_close(mapped, torch.stack([attend(operands.q)] * 2))


def test_vmap_of_a_step() -> None:
    operands = draw(Case((2, 1, 2, 3, 2), "initial", "forget and write", state=True))
    q, k, v, log_forget, write = (
        operand[:, 0] for operand in (operands.q, operands.k, operands.v, operands.log_forget, operands.write)
    )

    def step(matrix: Tensor, association: Tensor) -> Tensor:
        return MesaState("initial", matrix, association).step(q, k, v, log_forget=log_forget, write=write)[0]

    mapped = torch.vmap(step, (0, None))(torch.stack([operands.matrix] * 3), operands.association)
    torch.testing.assert_close(mapped, torch.stack([step(operands.matrix, operands.association)] * 3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend: str) -> None:
    operands = draw(Case((2, 40, 2, 8, 8), "initial", "forget")).to(torch.bfloat16)
    inputs = (operands.q, operands.k, operands.v, operands.ridge.float())
    options = {"log_forget": operands.log_forget.float(), "backend": backend}
    expected = mesa_attention(*inputs, **options)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mesa_attention(*inputs, **options), expected)
        # some layers give float32 under autocast and others do not
        mixed = mesa_attention(operands.q, operands.k.float(), operands.v.float(), operands.ridge, **options)
        weights = mesa_attention_map(*(operand.float() for operand in (operands.q, operands.k)), operands.ridge.float())
    assert torch.equal(mixed, mesa_attention(operands.q, operands.k, operands.v, operands.ridge, **options))
    assert torch.equal(
        weights, mesa_attention_map(*(operand.float() for operand in (operands.q, operands.k)), operands.ridge.float())
    )
    with pytest.raises(InputError, match=r"k: got torch.float32, .* dtype of q \(torch.bfloat16\)"):
        mesa_attention(operands.q, operands.k.float(), operands.v, operands.ridge)


@pytest.mark.parametrize("norm", [None, UnitNorm(), LayerNorm()])
def test_a_mesa_layer_trains_under_autocast(norm: Norm | None, generator: torch.Generator) -> None:
    layer = MesaAttention(6, 2, 3, qk_norm=norm)
    for parameter in (layer.W_Q, layer.W_K, layer.W_V, layer.P):
        nn.init.normal_(parameter, generator=generator)
    x = torch.randn(2, 9, 6, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().mean()
    loss.backward()
    exact = layer(x).square().mean()
    assert float((loss - exact).detach().abs() / exact.detach()) < 0.05
    assert all(bool(parameter.grad.isfinite().all()) for parameter in layer.parameters())
