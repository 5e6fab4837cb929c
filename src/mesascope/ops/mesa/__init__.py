"""Mesa attention: ridge regression solved exactly at every time step, applied to the query."""

from mesascope.ops.mesa.attention import mesa_attention, mesa_attention_map
from mesascope.ops.mesa.backends import native_available, native_supports
from mesascope.ops.mesa.state import MesaState

__all__ = ["MesaState", "mesa_attention", "mesa_attention_map", "native_available", "native_supports"]
