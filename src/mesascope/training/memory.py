"""How much memory a training needs, before it starts, and how it keeps what it has."""

import ctypes
import platform

import psutil
import torch

from mesascope.errors import InputError
from mesascope.nn.transformer import Transformer
from mesascope.training.config import EVALUATION_BATCH, TrainingConfig

_PROBE_BATCH = 2
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
_LARGEST_ON_HEAP = 32 * 2**20
"""Bytes; glibc allows no more."""


def training_bytes(config: TrainingConfig) -> int:
    """Estimated peak memory of one training step, in bytes.

    The tensors that autograd keeps for a small batch are measured and scaled to the micro-batch; the backward pass
    holds about as much again in gradients of activations. The sequences of a batch and of all tests come on top. The
    MLPs of so few tokens are computed by torch; where native kernels compute those of the training, they keep less.
    """
    model = Transformer(config.model)
    sequences = config.task.sample(_PROBE_BATCH, torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = (model(sequences.tokens) - sequences.targets).square().sum()
    del loss
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    drawn = (sequences.tokens, sequences.targets, sequences.latents.transition, sequences.latents.states)
    data = 2 * sum(tensor.nbytes for tensor in drawn if tensor is not None)
    fixed = 4 * sum(parameter.nbytes for parameter in model.parameters())
    passed = min(config.micro_batch, config.batch_size)
    drawn_sequences = config.batch_size + EVALUATION_BATCH * config.evaluation_batches
    return fixed + (2 * activations * passed + data * drawn_sequences) // _PROBE_BATCH


def require_memory(config: TrainingConfig, available: int | None = None) -> None:
    """Raise `InputError` if the training cannot fit into the memory that is free now.

    Args:
        available: bytes that may be used; None asks the operating system.
    """
    available = psutil.virtual_memory().available if available is None else available
    needed = training_bytes(config)
    if needed > available:
        raise InputError(
            f"batch_size, micro_batch, evaluation_batches: got {config.batch_size}, {config.micro_batch} and "
            f"{config.evaluation_batches}, which need about {needed / 2**30:.1f} GiB, but {available / 2**30:.1f} GiB "
            "of memory are free; make them smaller"
        )


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors up to 32 MiB for those to come, in the whole process.

    Without it glibc gives the activations of a training step back to the system, and the next step gets them again
    page by page, zeroed. The process then keeps the most memory that it has had.

    Returns:
        Whether it was told; False with another C library, where nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*option) == 1 for option in ((_TRIM_THRESHOLD, 2**31 - 1), (_MMAP_THRESHOLD, _LARGEST_ON_HEAP)))
