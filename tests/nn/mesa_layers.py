"""Mesa layers with every option, and what they compute, written out token by token in NumPy."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mesascope.nn import DPFP, ForgetGate, Mesa, MesaAttention, MixedKey, PreviousKey, UnitNorm, WriteGate
from oracles import attention as oracle

Array = NDArray[np.float64]

MESAS: dict[str, Mesa] = {
    "plain": Mesa(0.7),
    "ridge per coordinate": Mesa(0.7, ridge_per="coordinate", smallest_ridge=0.25),
    "unit norm": Mesa(features=(UnitNorm(),)),
    "DPFP-1": Mesa(features=(DPFP(1),)),
    "DPFP-3, unit norm, ridge per coordinate": Mesa(features=(DPFP(3), UnitNorm()), ridge_per="coordinate"),
    "previous key": Mesa(key_shift=PreviousKey()),
    "mixed key, DPFP-2": Mesa(key_shift=MixedKey(0.7), features=(DPFP(2),)),
    "forget": Mesa(forget=ForgetGate(0.8)),
    "forget, ridge included": Mesa(forget=ForgetGate(0.9), regularizer="initial"),
    "write": Mesa(write=WriteGate(2.0)),
    "constant": Mesa(regularizer="constant"),
    "everything": Mesa(
        1.5,
        ridge_per="coordinate",
        smallest_ridge=0.1,
        features=(DPFP(2), UnitNorm()),
        key_shift=MixedKey(0.4),
        forget=ForgetGate(0.9),
        write=WriteGate(),
    ),
    "everything, initial": Mesa(
        features=(UnitNorm(),),
        key_shift=PreviousKey(),
        forget=ForgetGate(0.9),
        write=WriteGate(1.5),
        regularizer="initial",
    ),
}
WIDTH, HEADS, KEY = 6, 3, 4


def shaken(module: torch.nn.Module, seed: int = 0) -> Any:
    """The module in float64 with all parameters, ridges and gates included, away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def layer(name: str, *, position_dim: int = 0, seed: int = 0) -> MesaAttention:
    generator = torch.Generator().manual_seed(seed)
    attention = MesaAttention(WIDTH, HEADS, KEY, MESAS[name], position_dim=position_dim, generator=generator)
    built: MesaAttention = shaken(attention, seed)
    return built


def inputs(batch: int = 2, time: int = 7, *, size: int = WIDTH, seed: int = 9) -> Tensor:
    return torch.randn(batch, time, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(weights: dict[str, Tensor], mesa: Mesa, x: Tensor, heads: int = HEADS, key_dim: int = KEY) -> Array:
    """The output of a `MesaAttention` with these weights, without positions."""
    w, tokens = {name: value.numpy() for name, value in weights.items()}, x.numpy()
    q, k, v = ((tokens @ w[name].T).reshape(*tokens.shape[:2], heads, key_dim) for name in ("W_Q", "W_K", "W_V"))
    mixed = regression_by_hand(w, mesa, q, k, v, tokens)
    return mixed.reshape(*tokens.shape[:2], -1) @ w["P"].T


def regression_by_hand(w: dict[str, Array], mesa: Mesa, q: Array, k: Array, v: Array, gate_input: Array) -> Array:
    """Key shift, features, gates and the regression; operands `[B, T, H, n_a]`."""
    if mesa.key_shift is not None:
        shifted = np.zeros_like(k)
        for b, t, h in np.ndindex(*k.shape[:3]):
            share = sigmoid(w["key_shift.raw_share"][h]) if isinstance(mesa.key_shift, MixedKey) else 0.0
            shifted[b, t, h] = share * k[b, t, h] + (1 - share) * (k[b, t - 1, h] if t > 0 else 0.0)
        k = shifted
    for feature in mesa.features:
        q, k = (
            np.apply_along_axis(unit_norm if isinstance(feature, UnitNorm) else dpfp(feature.nu), -1, operand)
            for operand in (q, k)
        )
    log_forget = write = None
    if mesa.forget is not None:
        log_forget = np.log(sigmoid(gate_input @ w["forget_gate.W"].T + w["forget_gate.b"]))
    if mesa.write is not None:
        write = mesa.write.largest * sigmoid(gate_input @ w["write_gate.W"].T + w["write_gate.b"])
    ridge = mesa.smallest_ridge + np.log1p(np.exp(w["raw_ridge"]))
    regularizer = mesa.regularizer or ("initial" if mesa.forget is None else "constant")
    ridge = ridge[None] if ridge.ndim == 2 else ridge
    return oracle.mesa_attention(q, k, v, ridge, log_forget=log_forget, write=write, regularizer=regularizer)


def dpfp(nu: int) -> Any:
    """arXiv 2102.11174, eq. 37, one feature at a time."""

    def project(x: Array) -> Array:
        d = len(x)
        r = [max(float(value), 0.0) for value in x] + [max(-float(value), 0.0) for value in x]
        features = np.zeros(2 * d * nu)
        for j in range(1, nu + 1):
            for i in range(1, 2 * d + 1):
                features[2 * d * (j - 1) + i - 1] = r[i - 1] * r[(i + j - 1) % (2 * d)]
        return features

    return project


def unit_norm(x: Array) -> Array:
    length = float(np.sqrt((x**2).sum()))
    return x / length if length > 0 else x


def sigmoid(logit: Any) -> Any:
    return 1 / (1 + np.exp(-logit))
