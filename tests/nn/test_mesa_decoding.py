"""Mesa layers that take a sequence in parts, or one token at a time."""

import pytest
import torch
from torch import Tensor

from mesascope.nn import DPFP, MesaLayerState

from .mesa_layers import HEADS, KEY, MESAS, inputs, layer


@pytest.mark.parametrize("position_dim", [0, 2])
@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_token_by_token(name: str, position_dim: int) -> None:
    attention, x = layer(name, position_dim=position_dim), inputs(3, 9)
    positions = inputs(1, 9, size=2, seed=3)[0] if position_dim else None
    state, outputs = attention.initial_state(3), []
    for t in range(9):
        output, state = attention.step(x[:, t], state, None if positions is None else positions[t])
        outputs.append(output)
    parallel, final = attention(x, positions, return_state=True)
    torch.testing.assert_close(torch.stack(outputs, 1), attention(x, positions), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(parallel, attention(x, positions), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(tensors(state), tensors(final), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("split", [0, 1, 4, 9])
@pytest.mark.parametrize("name", MESAS)
@torch.no_grad()
def test_a_sequence_in_two_parts(name: str, split: int) -> None:
    attention, x = layer(name), inputs(2, 9)
    first, state = attention(x[:, :split], return_state=True)
    second = attention(x[:, split:], state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), attention(x), rtol=1e-9, atol=1e-11)


def test_gradients_through_the_state() -> None:
    """Backpropagation through decoding gives the gradients of the parallel form, also of the ridge inside the state."""
    attention, x = layer("everything, initial"), inputs(2, 5)

    def gradients(output: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(output.square().sum(), tuple(attention.parameters()))

    state, outputs = attention.initial_state(2), []
    for t in range(5):
        output, state = attention.step(x[:, t], state)
        outputs.append(output)
    torch.testing.assert_close(gradients(torch.stack(outputs, 1)), gradients(attention(x)), rtol=1e-8, atol=1e-10)
    detached = state.detach()
    assert state.regression.matrix.requires_grad
    assert not any(tensor.requires_grad for tensor in tensors(detached))
    assert torch.equal(detached.to("cpu").regression.matrix, state.regression.matrix)


def tensors(state: MesaLayerState) -> tuple[Tensor, ...]:
    memory = (state.regression.matrix, state.regression.association)
    return memory if state.previous_key is None else (*memory, state.previous_key)


def test_the_state_keeps_its_size() -> None:
    attention, x = layer("everything"), inputs(2, 9)
    _, state = attention(x, return_state=True)
    d = DPFP(2).size(KEY)
    assert [tuple(tensor.shape) for tensor in tensors(state)] == [
        (2, HEADS, d, d),
        (2, HEADS, KEY, d),
        (2, HEADS, KEY),
    ]
