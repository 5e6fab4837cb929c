"""The attention of this package as methods of the benchmark."""

import functools

from torch import Tensor

from mesascope.benchmarks.methods import Method, Shape, draw_operands, map_fits, prepare
from mesascope.errors import InputError
from mesascope.ops import linear_attention, mesa_attention, softmax_attention
from mesascope.ops.mesa.attention import Backend

LINEAR, SOFTMAX, NATIVE = "linear: mesascope", "softmax: mesascope", "mesa: native"

_PROBE = Shape(4, 3, 4)


def our_methods() -> tuple[list[Method], list[str]]:
    """The methods that run here, and one line about each that does not."""
    methods, left_out = [], []
    for backend in ("native", "chunked"):
        method = Method("mesa", backend, functools.partial(_mesa, backend))
        try:
            prepare(method, draw_operands(_PROBE), "forward+backward")()
        except InputError as error:
            left_out.append(f"{method.name} is left out: {error}")
        else:
            methods.append(method)
    native = any(method.name == NATIVE for method in methods)
    # without native kernels, linear attention is a masked product
    linear = Method("linear", "mesascope", _linear, Method.fits if native else map_fits)
    return [*methods, Method("softmax", "mesascope", _softmax), linear], left_out


def _mesa(backend: Backend, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return mesa_attention(q, k, v, ridge, backend=backend)


def _softmax(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return softmax_attention(q, k, v)


def _linear(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return linear_attention(q, k, v)
