"""The peers of the attention benchmark: what one would use, or write by hand, without this package."""

import functools
import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from mesascope.benchmarks.cholesky import cholesky_mesa_attention
from mesascope.benchmarks.methods import Method, Passes, Shape, factorisation_fits, map_fits

SDPA, MASKED_PRODUCT = "softmax: torch SDPA", "linear: torch masked product"
CHOLESKY, FLA_EXACT, FLA_CG = "mesa: torch batched Cholesky", "mesa: fla-core exact", "mesa: fla-core CG-30"

MISSING = f"{FLA_EXACT} and {FLA_CG[6:]} are left out: get them with `pip install 'fla-core>=0.6' einops`"

_STEPS = 30
_LONGEST_CHUNK = 64


def peer_methods() -> tuple[list[Method], list[str]]:
    """The peers that run here, and one line about those that do not."""
    methods = [
        Method("softmax", "torch SDPA", _sdpa, head_major=True),
        Method("linear", "torch masked product", _masked_product, map_fits, head_major=True),
        Method("mesa", "torch batched Cholesky", cholesky_mesa_attention, factorisation_fits),
    ]
    naive = fla_references()
    if naive is None:
        return methods, [MISSING]
    exact = Method("mesa", "fla-core exact", functools.partial(_fla_exact, naive), _exact_fits)
    return [*methods, exact, Method("mesa", f"fla-core CG-{_STEPS}", functools.partial(_fla_cg, naive), _cg_fits)], []


def fla_references() -> ModuleType | None:
    """The plain torch references of the mesa layer in fla-core, or None where it or einops is not installed.

    Read from their file, because importing the package needs triton, which many machines without a GPU lack.
    """
    package = importlib.util.find_spec("fla")
    if package is None or importlib.util.find_spec("einops") is None:
        return None
    for folder in package.submodule_search_locations or ():
        path = Path(folder) / "ops" / "mesa_net" / "naive.py"
        spec = importlib.util.spec_from_file_location("fla_mesa_references", path) if path.exists() else None
        if spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return None


def fla_version() -> str | None:
    """The installed version of fla-core, or None."""
    try:
        return importlib.metadata.version("fla-core")
    except importlib.metadata.PackageNotFoundError:
        return None


def _sdpa(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _masked_product(q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    return (q @ k.mT).tril() @ v


def _fla_exact(naive: ModuleType, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    output: Tensor = naive.naive_mesa_net_exact(q, k, v, *_gates(q, ridge))[0]
    return output


def _fla_cg(naive: ModuleType, q: Tensor, k: Tensor, v: Tensor, ridge: Tensor) -> Tensor:
    # it needs chunks that divide T
    chunk = max(size for size in range(1, _LONGEST_CHUNK + 1) if q.shape[1] % size == 0)
    output: Tensor = naive.naive_mesa_net_CG(q, k, v, *_gates(q, ridge), chunk, max_CG_iteration=_STEPS)[0]
    return output


def _gates(q: Tensor, ridge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logarithm of the forget factor, ridge and write strength as fla-core wants them: nothing forgotten, all kept."""
    nothing_forgotten = torch.zeros(q.shape[:3])
    return nothing_forgotten, ridge[:, None].expand(-1, q.shape[-1]), torch.ones(q.shape[:3])


def _exact_fits(shape: Shape, passes: Passes) -> bool:
    """A D x D matrix per step, all of which autograd copies for every step backwards."""
    matrices = shape.heads * shape.time * shape.dim**2
    return matrices <= 1e8 and (passes == "forward" or matrices * shape.time <= 1.5e9)


def _cg_fits(shape: Shape, passes: Passes) -> bool:
    """About ten tensors of the size of its inputs per step of the solver."""
    return shape.heads * shape.time * max(shape.dim, _LONGEST_CHUNK) <= 5 * 10**6
