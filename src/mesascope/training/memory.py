"""How much memory a training needs, before it starts."""

import psutil
import torch

from mesascope.errors import InputError
from mesascope.nn.transformer import Transformer
from mesascope.training.config import EVALUATION_BATCH, TrainingConfig

_PROBE_BATCH = 2


def training_bytes(config: TrainingConfig) -> int:
    """Estimated peak memory of one training step, in bytes.

    The tensors that autograd keeps for a small batch are measured and scaled to the micro-batch; the backward pass
    holds about as much again in gradients of activations. The sequences of a batch and of all tests come on top.
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
