"""Which native kernels a module calls."""

from types import ModuleType
from typing import Any

import pytest

from mesascope.ops.kernels import kernels


class CalledKernels:
    """Writes down the names of native kernels that a module calls, which still run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
        self.names: list[str] = []
        monkeypatch.setattr(module, "kernels", lambda: self)

    def __getattr__(self, name: str) -> Any:
        self.names.append(name)
        return getattr(kernels(), name)
