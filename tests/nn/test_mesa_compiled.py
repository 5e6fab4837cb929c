"""Mesa layers inside torch.compile."""

import subprocess
import sys

SCRIPT = """
import torch
from mesascope.nn import DPFP, ForgetGate, Mesa, MesaAttention, MesaMultiheadAttention, MixedKey, UnitNorm, WriteGate

torch.manual_seed(0)
mesa = Mesa(features=(DPFP(2), UnitNorm()), key_shift=MixedKey(), forget=ForgetGate(), write=WriteGate())
layer, x = MesaAttention(8, 2, 4, mesa), torch.randn(3, 5, 8)
compiled = torch.compile(layer, backend="aot_eager")
print(torch.allclose(compiled(x), layer(x), rtol=1e-4, atol=1e-5))
state = layer.initial_state(3)
stepped = torch.compile(layer.step, backend="aot_eager", fullgraph=True)(x[:, 0], state)[0]
print(torch.allclose(stepped, layer(x)[:, 0], rtol=1e-4, atol=1e-5))

drop_in = MesaMultiheadAttention(8, 2, batch_first=True, mesa=mesa)
compiled = torch.compile(drop_in, backend="aot_eager")
causal = torch.nn.Transformer.generate_square_subsequent_mask(5)
padding = torch.arange(5)[None] > torch.tensor([4, 2, 3])[:, None]
for mask, hidden in ((causal, causal.new_zeros(3, 5).masked_fill(padding, -torch.inf)), (causal < 0, padding)):
    options = {"attn_mask": mask, "key_padding_mask": hidden}
    for found, expected in zip(compiled(x, x, x, **options), drop_in(x, x, x, **options)):
        print(torch.allclose(found, expected, rtol=1e-4, atol=1e-5))
"""


def test_compiled_layers_compute_the_same() -> None:
    """In an interpreter without type checking, whose annotations torch cannot trace."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300)
    assert found.stdout.split() == ["True"] * 6, found.stderr
