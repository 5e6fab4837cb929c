"""Mesa attention over the whole table: values against loops in numpy, gradients against the per-token solve."""

import numpy as np
import pytest
import torch

from mesascope.ops import mesa_attention
from mesascope.ops.mesa import gated, recursive
from oracles import attention as oracle

from .mesa_cases import BACKENDS, FAST, GATES, REGULARIZERS, SHAPES, Case, Operands, draw, relative, table

TINY = (1, 4, 2, 2, 1)
DIFFERENTIABLE_TWICE = ("reference", "chunked")


def by_definition(operands: Operands) -> dict[str, torch.Tensor]:
    tensors = operands.tensors()
    if tensors["ridge"].dim() == 1:
        tensors["ridge"] = tensors["ridge"].expand(operands.q.shape[0], -1)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    results = oracle.mesa(**arrays, regularizer=operands.regularizer)
    names = ("output", "matrix", "association")
    return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}


@pytest.mark.parametrize("case", table(), ids=str)
def test_values_and_final_states(case: Case) -> None:
    operands = draw(case)
    expected = by_definition(operands)
    for backend in BACKENDS:
        for name, found in operands.run(backend).items():
            assert relative(found, expected[name]) <= 1e-10, f"{backend}: {name}"


@pytest.mark.parametrize("case", table(), ids=str)
def test_gradients_and_those_of_final_states(case: Case) -> None:
    operands = draw(case)
    for through in ((), ("output",)):
        expected = operands.gradients("reference", through=through)
        for backend in FAST:
            for name, found in operands.gradients(backend, through=through).items():
                assert relative(found, expected[name]) <= 1e-10, f"{backend}: {name} through {through or 'all'}"


@pytest.mark.parametrize("state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_gradients_of_the_reference(regularizer: str, gates: str, state: bool) -> None:
    """Against complex steps through the loops: what all other gradients are compared with."""
    operands = draw(Case(TINY, regularizer, gates, "row diagonal", state))
    names = list(operands.tensors())
    found = operands.gradients("reference")
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(result.shape, generator=generator, dtype=torch.float64).numpy()
        for result in by_definition(operands).values()
    ]

    def stacked(*arrays: np.ndarray) -> np.ndarray:
        results = oracle.mesa(**dict(zip(names, arrays, strict=True)), regularizer=regularizer)
        return np.concatenate([result.ravel() for result in results])

    arrays = [tensor.numpy() for tensor in operands.tensors().values()]
    cotangent = np.concatenate([cotangent.ravel() for cotangent in cotangents])
    for name, expected in zip(names, oracle.complex_step_gradients(stacked, arrays, cotangent), strict=True):
        if name == "matrix":  # only its symmetric part is free
            expected = (expected + expected.swapaxes(-1, -2)) / 2
        if not operands.unused(name):
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-10, atol=1e-11, err_msg=name)


@pytest.fixture
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two and three tokens, so that few tokens fill several."""
    monkeypatch.setattr(recursive, "CHUNK", 2)
    monkeypatch.setattr(recursive, "_SMALLEST_CHUNK", 2)
    monkeypatch.setattr(gated, "CHUNK", 3)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("case", table(("diagonal",)), ids=str)
def test_short_chunks(case: Case) -> None:
    operands = draw(case)
    expected = operands.run("reference"), operands.gradients("reference")
    for found, exact in zip((operands.run("chunked"), operands.gradients("chunked")), expected, strict=True):
        for name in exact:
            assert relative(found[name], exact[name]) <= 1e-10, name


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("gates", ["plain", "forget and write", "forget much"])
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_gradcheck(regularizer: str, gates: str, state: bool) -> None:
    operands = draw(Case((1, 5, 1, 2, 1), regularizer, gates, "diagonal", state)).with_gradients()
    if operands.write is not None:
        operands.write.data.add_(0.1)  # finite differences must not leave what is allowed
    if operands.log_forget is not None:
        operands.log_forget.data.sub_(0.1)
    names = [name for name in operands.tensors() if not operands.unused(name)]

    for backend in BACKENDS:

        def results(*tensors: torch.Tensor, backend: str = backend) -> tuple[torch.Tensor, ...]:
            moved = {**vars(operands), **dict(zip(names, tensors, strict=True))}
            return tuple(Operands(**moved).run(backend).values())

        inputs = [operands.tensors()[name] for name in names]
        assert torch.autograd.gradcheck(results, inputs)
        if backend in DIFFERENTIABLE_TWICE:
            assert torch.autograd.gradgradcheck(results, inputs, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_second_derivatives(regularizer: str, gates: str) -> None:
    case = Case(SHAPES["B1-T70-H1-D3-Dv5"], regularizer, gates, "diagonal", True)
    products = {}
    for backend in DIFFERENTIABLE_TWICE:
        operands = draw(case).with_gradients()
        inputs = [tensor for name, tensor in operands.tensors().items() if not operands.unused(name)]
        gradients = torch.autograd.grad(operands.loss(operands.run(backend)), inputs, create_graph=True)
        slope = operands.loss({str(index): gradient for index, gradient in enumerate(gradients)}, seed=2)
        products[backend] = torch.autograd.grad(slope, inputs)
    for found, expected in zip(products["chunked"], products["reference"], strict=True):
        assert relative(found, expected) <= 1e-9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ridge", ["head", "diagonal"])
def test_regularizers_agree_where_nothing_is_forgotten(backend: str, ridge: str) -> None:
    operands = draw(Case(SHAPES["B2-T7-H2-D3-Dv2"], "initial", "write", ridge))
    initial, constant = (
        mesa_attention(
            operands.q, operands.k, operands.v, operands.ridge, write=operands.write, regularizer=name, backend=backend
        )
        for name in REGULARIZERS
    )
    torch.testing.assert_close(initial, constant, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_inputs_and_what_is_kept_for_the_gradient_stay_as_they_are(backend: str, regularizer: str) -> None:
    operands = draw(Case(SHAPES["B2-T7-H2-D3-Dv2"], regularizer, "forget and write", "diagonal", True))
    before = {name: tensor.clone() for name, tensor in operands.tensors().items()}
    operands.gradients(backend)
    for name, tensor in operands.tensors().items():
        assert torch.equal(tensor, before[name]), name
