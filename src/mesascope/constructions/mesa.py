"""One mesa layer is ridge regression on the pairs seen so far.

Source: arXiv 2309.05858, eqs. 4-8 with keys s_{t-1}, values s_t and queries s_t.
"""

import torch

from mesascope.constructions.slots import (
    CURRENT,
    OUTPUT,
    PREVIOUS,
    SlotHead,
    SlotLayer,
    build,
    read_slot,
    set_ridge,
)
from mesascope.errors import require
from mesascope.nn import Mesa, MesaAttention, Transformer


def ridge_regression(n_s: int, ridge: float, *, dtype: torch.dtype = torch.float32) -> Transformer:
    """A mesa layer that predicts (sum s_{t'+1} s_t'^T) (sum s_t' s_t'^T + ridge I)^-1 s_t, sums over t' < t.

    Args:
        n_s: size of an observation.
        ridge: penalty, greater than 0 (1 / lambda of the paper).
        dtype: of the weights.

    Returns:
        A Transformer of one layer with one head that reads `ConstructedTokens()`.

    Raises:
        InputError: `n_s` or the ridge is not positive.
    """
    require(ridge > 0, "ridge", ridge, "greater than 0")
    head = SlotHead(keys=PREVIOUS, queries=CURRENT, values=read_slot(n_s, CURRENT), output=OUTPUT)
    layers = [SlotLayer((head,))]
    model = build(n_s, layers, name="ridge regression (mesa layer)", dtype=dtype, attention=Mesa(ridge))
    for module in model.modules():
        if isinstance(module, MesaAttention):
            set_ridge(module, ridge)
    return model
