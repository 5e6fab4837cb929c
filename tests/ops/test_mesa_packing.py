"""Sequences concatenated along time equal separate runs, and do not see one another."""

import pytest
import torch

from mesascope.ops import MesaState, mesa_attention

from .mesa_cases import BACKENDS, GATES, REGULARIZERS, Case, draw, relative

LENGTHS = (3, 0, 5, 1, 40)
ENDS = torch.tensor([0, 3, 3, 8, 9, 49], dtype=torch.int32)


@pytest.mark.parametrize("with_state", [False, True], ids=["no state", "state"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_equal_separate_runs(backend: str, regularizer: str, gates: str, with_state: bool) -> None:
    operands = draw(Case((1, 49, 2, 3, 2), regularizer, gates, "diagonal")).with_gradients()
    starts = draw(Case((len(LENGTHS), 1, 2, 3, 2), regularizer, state=True)).with_gradients()
    matrix, association = (starts.matrix + starts.matrix.mT) / 2, starts.association
    options = {"write": operands.write, "log_forget": operands.log_forget, "regularizer": regularizer}
    packed, final = mesa_attention(
        operands.q,
        operands.k,
        operands.v,
        operands.ridge,
        **options,
        state=MesaState(regularizer, matrix, association) if with_state else None,
        return_state=True,
        backend=backend,
        cu_seqlens=ENDS,
    )
    outputs, matrices, associations = [], [], []
    for row, (start, end) in enumerate(zip(ENDS[:-1].tolist(), ENDS[1:].tolist(), strict=True)):
        q, k, v = (operand[:, start:end] for operand in (operands.q, operands.k, operands.v))
        gates_of_row = {
            name: value[:, start:end] if isinstance(value, torch.Tensor) else value for name, value in options.items()
        }
        state = MesaState(regularizer, matrix[row, None], association[row, None]) if with_state else None
        output, last = mesa_attention(
            q, k, v, operands.ridge, **gates_of_row, state=state, return_state=True, backend=backend
        )
        outputs.append(output)
        matrices.append(last.matrix)
        associations.append(last.association)
    alone = {"output": torch.cat(outputs, 1), "matrix": torch.cat(matrices), "association": torch.cat(associations)}
    together = {"output": packed, "matrix": final.matrix, "association": final.association}
    for name, expected in alone.items():
        assert relative(together[name], expected) <= 1e-12, name
    inputs = [*operands.tensors().values(), *((starts.matrix, association) if with_state else ())]
    found, expected = (
        torch.autograd.grad(operands.loss(results), inputs, materialize_grads=True, retain_graph=True)
        for results in (together, alone)
    )
    for gradient, truth in zip(found, expected, strict=True):
        assert relative(gradient, truth) <= 1e-10


def test_one_token_of_one_sequence_changes_nothing_in_the_others() -> None:
    operands = draw(Case((1, 49, 2, 3, 2)))
    keys = operands.k.clone()
    keys[0, 4] += 1
    before, after = (
        mesa_attention(operands.q, k, operands.v, operands.ridge, cu_seqlens=ENDS) for k in (operands.k, keys)
    )
    changed = (before != after).any(-1).any(-1)[0].nonzero().flatten().tolist()
    assert changed == [4, 5, 6, 7]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_any_integers_will_do(dtype: torch.dtype) -> None:
    operands = draw(Case((1, 49, 2, 3, 2)))
    output = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, cu_seqlens=ENDS.to(dtype))
    expected = mesa_attention(operands.q, operands.k, operands.v, operands.ridge, cu_seqlens=ENDS)
    assert torch.equal(output, expected)


def test_only_empty_sequences() -> None:
    operands = draw(Case((1, 0, 2, 3, 2)))
    output, state = mesa_attention(
        operands.q, operands.k, operands.v, operands.ridge, cu_seqlens=torch.tensor([0, 0, 0]), return_state=True
    )
    assert output.shape == (1, 0, 2, 2)
    assert state.matrix.shape == (2, 2, 3, 3)
