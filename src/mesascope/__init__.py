"""mesascope: find out which learning algorithm a sequence model runs inside its forward pass."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesascope.ops.mesa import MesaState, mesa_attention

__all__ = ["MesaState", "mesa_attention"]


def __getattr__(name: str) -> Any:
    """Import what is public here when it is first asked for: `import mesascope` alone does not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("mesascope.ops.mesa"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
