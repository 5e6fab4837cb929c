"""What a result was produced with."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil
import torch


def describe_environment() -> dict[str, Any]:
    """Versions and machine, as plain JSON values; nothing that names a person or a path."""
    return {
        "mesascope": version("mesascope"),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "machine": platform.machine(),
        "processor": processor_name(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
    }


def processor_name() -> str:
    """Model name and the widest vector instructions torch uses."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:  # not Linux: the platform module's answer stands
        names = []
    return f"{names[0] if names else name} ({torch.backends.cpu.get_cpu_capability()})"
