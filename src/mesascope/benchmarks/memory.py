"""Peak memory of a forward and backward pass, in a process of its own.

Run as a module, it is that process: `python -m mesascope.benchmarks.memory METHOD HEADS TIME DIM THREADS`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from mesascope.benchmarks.methods import Shape, draw_operands, prepare
from mesascope.benchmarks.ours import our_methods
from mesascope.benchmarks.peers import peer_methods
from mesascope.errors import WorkerError, require

_STATUS = Path("/proc/self/status")
_WARM_UP_TIME = 8
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Growth of the resident memory from before q, k and v were made to the highest point.

    Attributes:
        growth: bytes.
        operands: bytes of q, k, v, o and their gradients, which no method can do without.
    """

    growth: int
    operands: int

    @property
    def ratio(self) -> float:
        return self.growth / self.operands


def can_measure_memory() -> bool:
    """Whether the system tells a process its highest resident memory: Linux does."""
    return _STATUS.exists() and "VmHWM" in _STATUS.read_text()


def measure_memory(method: str, shape: Shape, threads: int) -> Memory:
    """The memory of one forward and backward pass of the method called `method`, in a fresh interpreter.

    Raises:
        WorkerError: the process failed or was killed.
    """
    arguments = [method, shape.heads, shape.time, shape.dim, threads]
    command = [sys.executable, "-m", __name__, *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise WorkerError(f"{method} at {shape}: the process that measures memory failed: {reason}")
    return Memory(**json.loads(done.stdout))


def _measure_here(name: str, shape: Shape) -> Memory:
    methods = {method.name: method for method in (*our_methods()[0], *peer_methods()[0])}
    require(name in methods, "method", name, f"one of {sorted(methods)}")
    small = Shape(shape.heads, min(shape.time, _WARM_UP_TIME), shape.dim)
    prepare(methods[name], draw_operands(small), "forward+backward")()
    before = psutil.Process().memory_info().rss
    prepare(methods[name], draw_operands(shape), "forward+backward")()
    (highest,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    growth = int(highest.split()[1]) * 1024 - before
    return Memory(growth, 8 * shape.heads * shape.time * shape.dim * _FLOAT)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[5]))
    measured = _measure_here(sys.argv[1], Shape(*(int(argument) for argument in sys.argv[2:5])))
    print(json.dumps({"growth": measured.growth, "operands": measured.operands}))
