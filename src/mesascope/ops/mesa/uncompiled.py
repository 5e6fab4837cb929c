"""Mesa attention as a call that torch.compile leaves alone.

Imported only while something is compiled: `torch.compiler.disable` imports the compiler, which takes seconds.
"""

import torch

from mesascope.ops.mesa import attention

mesa_attention = torch.compiler.disable(attention.mesa_attention, reason="mesa attention depends on values")
mesa_attention_map = torch.compiler.disable(attention.mesa_attention_map, reason="mesa attention depends on values")
