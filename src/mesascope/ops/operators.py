"""Functions on CPU tensors as operators that torch knows: opaque to torch.compile, differentiable, mappable.

As `torch.library.custom_op`, of which every call goes through torch.compile's front end: importing that takes seconds.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("mesascope", "FRAGMENT")


class Operator:
    """A function registered as `mesascope::name`, which must not change or return its operands; called as it is."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name = f"mesascope::{name}"
        _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
        _LIBRARY.impl(name, function, "CPU")
        self.overload = getattr(torch.ops.mesascope, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Give the shapes of the results, for tracing."""
        torch.library.register_fake(self.name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Give the gradients."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_LIBRARY)

    def refuse_gradient(self) -> None:
        """Make a derivative of the operator an error: it is itself a derivative."""

        def refuse(context: Any, *gradients: Any) -> Any:
            raise RuntimeError(f"{self.name}: the native kernels are differentiable once; use a backend in plain torch")

        self.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)

    def register_vmap(self, rule: Callable[..., Any]) -> None:
        """Give the rule by which vmap maps the operator."""
        torch.library.register_vmap(self.name, rule, lib=_LIBRARY)

    def register_autocast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` under autocast."""
        torch.library.register_autocast(self.name, "cpu", dtype, lib=_LIBRARY)
