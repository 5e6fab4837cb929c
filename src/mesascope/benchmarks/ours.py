"""The attention of this package as methods of the benchmark."""

import functools
from typing import Any

from torch import Tensor

from mesascope.benchmarks.methods import Method, Shape, draw_operands, factorisation_fits, map_fits, prepare
from mesascope.errors import InputError
from mesascope.ops import linear_attention, mesa_attention, softmax_attention

LINEAR, SOFTMAX, NATIVE = "linear: mesascope", "softmax: mesascope", "mesa: native"

_PROBE = Shape(4, 3, 4)


def our_methods() -> tuple[list[Method], list[str]]:
    """The methods that run here, and one line about each that does not."""
    methods, left_out = [], []
    for name, options in mesa_backends().items():
        fits = Method.fits if name in ("native", "chunked") else factorisation_fits
        method = Method("mesa", name, functools.partial(_mesa, options), fits)
        try:
            prepare(method, draw_operands(_PROBE), "forward+backward")()
        except InputError as error:
            left_out.append(f"{method.name} is left out: {error}")
        else:
            methods.append(method)
    native = any(method.name == NATIVE for method in methods)
    if not native and not left_out:
        left_out.append(f"{NATIVE} is left out: this build has no native kernels")
    # without native kernels, linear attention is a masked product
    linear = Method("linear", "mesascope", _linear, Method.fits if native else map_fits)
    return [*methods, Method("softmax", "mesascope", _softmax), linear], left_out


def mesa_backends() -> dict[str, dict[str, Any]]:
    """The arguments that choose each backend of `mesa_attention`, by its name; fastest first."""
    return {name: {"backend": name} for name in ("native", "chunked")}


def _mesa(options: dict[str, Any], q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return mesa_attention(q, k, v, ridge, **options)


def _softmax(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return softmax_attention(q, k, v)


def _linear(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return linear_attention(q, k, v)
