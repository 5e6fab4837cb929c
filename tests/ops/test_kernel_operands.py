"""What the compiled module takes for a tensor, and that it reads nothing that is not there."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mesascope import MesaState, mesa_attention
from mesascope.ops.kernels import fitting, kernels, native_kernels, readable

pytestmark = pytest.mark.skipif(native_kernels() is None, reason="this run is without compiled kernels")


class Wrapped(Tensor):
    """A tensor of another class, which may change what torch does with it."""


def fake(*shape: int) -> Tensor:
    with FakeTensorMode():
        return torch.empty(shape)


READABLE = {
    "float32": torch.ones(2, 3),
    "float64": torch.ones(2, 3, dtype=torch.float64),
    "a parameter": torch.nn.Parameter(torch.ones(3)),
    "a view with other strides": torch.ones(4, 6).T[::2, 1:],
    "an expanded one": torch.ones(1, 3).expand(5, 3),
    "a number": torch.tensor(1.0),
    "without numbers": torch.ones(2, 0),
}
UNREADABLE = {
    "half precision": torch.ones(2, 3, dtype=torch.bfloat16),
    "integers": torch.ones(2, 3, dtype=torch.int64),
    "complex numbers": torch.ones(2, 3, dtype=torch.complex64),
    "another device": torch.ones(2, 3, device="meta"),
    "a negated view": torch.ones(3, dtype=torch.complex64).conj().imag,
    "known to be zero": torch._efficientzerotensor((2, 3)),
    "sparse": torch.ones(2, 3).to_sparse(),
    "a fake one": fake(2, 3),
    "another class": Wrapped(torch.ones(2, 3)),
}


@pytest.mark.parametrize("name", READABLE)
def test_plain_tensors_are_read_and_none_is_passed_over(name: str) -> None:
    assert readable(READABLE[name])
    assert readable(None, READABLE[name], None)


@pytest.mark.parametrize("name", UNREADABLE)
def test_others_are_not(name: str) -> None:
    assert not readable(UNREADABLE[name])
    assert not readable(torch.ones(2), UNREADABLE[name])


def test_two_dtypes_are_not() -> None:
    assert not readable(READABLE["float32"], READABLE["float64"])


def test_tensors_inside_of_transforms_are_not() -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(readable(x))
        return x.sum()

    torch.vmap(note)(torch.ones(2, 3))
    torch.func.grad(note)(torch.ones(2, 3))
    assert seen == [False, False]


Q, V, RIDGE = torch.ones(2, 5, 3, 4), torch.ones(2, 5, 3, 6), torch.ones(3)
"""Two rows of five tokens, three heads of size 4, values of size 6."""


def test_operands_that_fit() -> None:
    assert fitting(Q, Q, V)
    assert fitting(Q.double(), Q.double(), V.double(), RIDGE.double())
    for ridge in (torch.tensor(1.0), torch.ones(1), RIDGE):
        assert fitting(Q, Q, V, ridge)


@pytest.mark.parametrize(
    "operands",
    [
        (Q[0], Q[0], V[0]),
        (Q, Q[:1], V),
        (Q, Q[:, :4], V),
        (Q, Q, V[:, :, :2]),
        (Q, Q[..., :3], V),
        (Q[:0], Q[:0], V[:0]),
        (Q[:, :0], Q[:, :0], V[:, :0]),
        (Q[..., :0], Q[..., :0], V),
        (Q, Q, V[..., :0]),
        (Q, Q.double(), V),
        (Q, Q, V.double()),
        (Q, Q, torch._neg_view(V)),
        (Q, Wrapped(Q), V),
        (Q.bfloat16(), Q.bfloat16(), V.bfloat16()),
        (Q, Q, V, torch.ones(2)),
        (Q, Q, V, torch.ones(3, 4)),
        (Q, Q, V, torch.ones(0)),
        (Q, Q, V, RIDGE.double()),
    ],
)
def test_operands_that_do_not_fit_or_need_a_closer_look(operands: tuple[Tensor, ...]) -> None:
    assert not fitting(*operands)


def test_a_state_that_is_negated_when_it_is_read() -> None:
    q, k, v = torch.randn(3, 2, 5, 3, 4)
    ridge = torch.ones(3)
    _, state = mesa_attention(q, k, v, ridge, return_state=True)
    negated = MesaState(state.regularizer, torch._neg_view(-state.matrix), torch._neg_view(-state.association))
    assert negated.matrix.is_neg()
    found, expected = (mesa_attention(q, k, v, ridge, state=start, backend="native") for start in (negated, state))
    assert torch.equal(found, expected)


def test_attention_is_of_operands_that_fit() -> None:
    q, v = torch.ones(2, 5, 3, 4), torch.ones(2, 5, 3, 6)

    def attend(*operands: Tensor) -> Tensor:
        output: Tensor = kernels().linear_forward(*operands, "auto", 1)
        return output

    assert attend(q, q, v).shape == v.shape
    assert attend(q[:, :0], q[:, :0], v[:, :0]).shape == (2, 0, 3, 6)
    misfits = [(q[..., :0], q[..., :0], v)]
    for other in (q[..., :2], q[:1], q[0], torch.ones(4)):
        misfits += [(other, q, v), (q, other, v)]
    misfits += [(q, q, values) for values in (v[:, :4], v[0], torch.ones(6))]
    for operands in misfits:
        with pytest.raises(ValueError, match="q, k, v: their shapes do not fit"):
            attend(*operands)


def test_kernels_refuse_what_would_lie_beyond_a_tensor() -> None:
    run, q = kernels(), torch.ones(2, 5, 3, 4)
    ridge, short, other_dtype = torch.ones(3), torch.ones(2, 4, 3, 4), q.double()
    square = torch.eye(4).repeat(2, 3, 1, 1)
    nothing = (None, None, None, None, None)
    o, _, saved, *_ = run.mesa_forward(q, q, q, ridge, *nothing, False, True, False, "auto", 1)
    _, normaliser = run.softmax_forward(q, q, q, 0.5, 1)
    x, W = torch.ones(7, 4), torch.ones(6, 4)
    refused = [
        (run.linear_forward, (q, q, short, "auto", 1)),
        (run.linear_forward, (q, q, q[0], "auto", 1)),
        (run.linear_forward, (q, q, other_dtype, "auto", 1)),
        (run.linear_backward, (q, q, q, short, "auto", 1)),
        (run.softmax_backward, (q, q, q, normaliser[..., :1], q, 0.5, 1)),
        (run.softmax_backward, (q, q, q, normaliser.transpose(1, 2).contiguous().transpose(1, 2), q, 0.5, 1)),
        (run.mesa_forward, (q, q, q, ridge, short[..., 0], None, None, None, None, False, True, False, "auto", 1)),
        (
            run.mesa_forward,
            (q, q, q, ridge, None, None, torch.ones(2, 3, 4, 3), None, None, False, True, False, "auto", 1),
        ),
        (run.mesa_forward, (q, q, q, ridge, None, None, square, None, None, False, True, False, "auto", 1)),
        (
            run.mesa_forward,
            (q, q, q, ridge, None, None, square, short[:, 0, :1, 0], None, False, True, False, "auto", 1),
        ),
        (run.mesa_forward, (q, q, q, torch.ones(2), *nothing, False, True, False, "auto", 1)),
        (run.mesa_forward, (q, q, q, torch.ones(1, 2, 4), *nothing, False, True, False, "auto", 1)),
        (run.mesa_backward, (q, q, q, ridge, *nothing, False, saved[1:], o, "auto", 1)),
        (run.maps_forward, (x, [W[:, :3].contiguous()], 1)),
        (run.maps_forward, (x.T, [torch.ones(6, 7)], 1)),
        (run.maps_backward, (x, [W], [torch.ones(6, 6)], True, 1)),
        (run.maps_forward, (x, [W] * 4, 1)),
        (run.maps_forward, (x[:, :0], [W[:, :0]], 1)),
        (run.maps_forward, (torch.tensor(1.0), [], 1)),
        (run.norm_forward, (x, W[0], W[0, :3], 1e-5, 1)),
        (run.norm_backward, (x, W[0], W[0], x[:5], 1e-5, 1)),
        (run.mlp_forward, (x, torch.tensor(1.0), W, 1)),
        (run.mlp_forward, (x, W, W, 1)),
        (run.mlp_backward, (x, W, W.T.contiguous(), torch.ones(6, 4), 1)),
        (run.mlp_forward, (x.double(), W, W.T.contiguous(), 1)),
    ]
    for function, arguments in refused:
        with pytest.raises(ValueError, match=r"fit|one dtype|contiguous|up to 3|needed"):
            function(*arguments)
    for elsewhere in (fake(2, 5, 3, 4), q.to("meta")):
        with pytest.raises((TypeError, ValueError), match=r"incompatible function arguments|on the CPU"):
            run.linear_forward(q, q, elsewhere, "auto", 1)
