"""Freed memory is kept by the process, so that later tensors do not cost page faults."""

import platform
import subprocess
import sys

SCRIPT = """
import resource, sys, torch
from mesascope.training.memory import keep_freed_memory

told = keep_freed_memory() if sys.argv[1] == "keep" else False

def use_and_free() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.zeros(2**20) for _ in range(64)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_and_free()
print(told, min(use_and_free() for _ in range(3)))
"""


def page_faults(mode: str) -> tuple[bool, int]:
    """Whether the C library was told, and the page faults of using 256 MiB again that were used and freed before."""
    command = [sys.executable, "-c", SCRIPT, mode]
    told, faults = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split()
    return told == "True", int(faults)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    told, faults = page_faults("keep")
    assert told == (platform.libc_ver()[0] == "glibc")
    if told:
        assert faults < page_faults("as it is")[1] / 10
