"""Memory is measured in a process of its own, and a T x T map shows."""

import pytest
import torch

from mesascope.benchmarks.memory import Memory, can_measure_memory, measure_memory
from mesascope.benchmarks.methods import Shape
from mesascope.benchmarks.peers import MASKED_PRODUCT
from mesascope.errors import WorkerError


def test_a_map_of_weights_shows() -> None:
    if not can_measure_memory():  # not Linux: the benchmark leaves memory out too
        return
    shape = Shape(4, 4096, 4)
    measured = measure_memory(MASKED_PRODUCT, shape, threads=1)
    assert measured.operands == 8 * torch.empty(4, 4096, 4).nbytes
    # a map of 256 MiB is kept for the backward pass, where another one is made; a third while it is masked
    maps = measured.growth / torch.empty(4, 4096, 4096, device="meta").nbytes
    assert 2 <= maps < 5
    assert measured.ratio == measured.growth / measured.operands


def test_ratio() -> None:
    assert Memory(growth=300, operands=100).ratio == 3.0


def test_a_failed_process_is_one_line() -> None:
    with pytest.raises(WorkerError) as caught:
        measure_memory("mesa: magic", Shape(4, 8, 2), threads=1)
    message = str(caught.value)
    assert message.startswith("mesa: magic at 4 heads, T = 8, D = 2: the process that measures memory failed: ")
    assert "method: got 'mesa: magic', but it must be one of" in message
    assert "\n" not in message
