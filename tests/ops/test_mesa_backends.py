"""Which backend is chosen, and that compiled kernels are asked for nothing they do not do."""

from typing import Any

import pytest
import torch

import mesascope
from mesascope.errors import InputError
from mesascope.ops import kernels as compiled
from mesascope.ops import mesa_attention
from mesascope.ops.mesa import backends, native, native_available, native_supports
from mesascope.ops.mesa.case import Case as BackendCase
from mesascope.ops.mesa.portable import PORTABLE

from .mesa_cases import Case, draw


class Kernels:
    """Stands for compiled kernels."""

    def __init__(self, available: bool = True, supported: bool = True) -> None:
        self.supported, self.is_available = supported, available
        self.calls: list[BackendCase] = []

    def available(self) -> bool:
        return self.is_available

    def supports(self, case: BackendCase) -> bool:
        return self.supported

    def compute(self, case: BackendCase) -> Any:
        self.calls.append(case)
        return PORTABLE["reference"](case)

    attend = compute


def install(monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None) -> None:
    """Put `kernels` in place of the native backend, or leave it without a compiled module."""
    if kernels is None:
        monkeypatch.setattr(native, "native_kernels", lambda: None)
    else:
        monkeypatch.setattr(backends, "native", kernels)


@pytest.fixture
def operands() -> tuple[torch.Tensor, ...]:
    drawn = draw(Case((2, 5, 2, 3, 2)))
    return drawn.q, drawn.k, drawn.v, drawn.ridge


def test_without_kernels(monkeypatch: pytest.MonkeyPatch, operands: tuple[torch.Tensor, ...]) -> None:
    for kernels in (None, Kernels(available=False)):
        install(monkeypatch, kernels)
        assert not native_available()
        assert torch.equal(mesa_attention(*operands), mesa_attention(*operands, backend="chunked"))
        with pytest.raises(
            InputError, match=r'backend: got \'native\', .* C\+\+ compiler and a torch .*, or use backend="chunked"'
        ):
            mesa_attention(*operands, backend="native")


def test_auto_takes_the_kernels_where_they_can(
    monkeypatch: pytest.MonkeyPatch, operands: tuple[torch.Tensor, ...]
) -> None:
    kernels = Kernels()
    install(monkeypatch, kernels)
    assert native_available()
    mesa_attention(*operands)
    mesa_attention(*operands, backend="native")
    assert len(kernels.calls) == 2
    ridge, *others = kernels.calls[0][3:]
    assert others == [None, None, "initial", None, False]
    assert torch.equal(ridge, operands[3])
    mesa_attention(*operands, backend="chunked")
    assert len(kernels.calls) == 2


def test_auto_leaves_to_the_chunks_what_the_kernels_do_not_do(
    monkeypatch: pytest.MonkeyPatch, operands: tuple[torch.Tensor, ...]
) -> None:
    kernels = Kernels(supported=False)
    install(monkeypatch, kernels)
    mesa_attention(*operands)
    assert not kernels.calls
    assert not native_supports(BackendCase(*operands, None, None, "initial", None, False))
    empty = Kernels()
    install(monkeypatch, empty)
    mesa_attention(*(operand[:, :0] for operand in operands[:3]), operands[3])
    assert not empty.calls


def test_kernels_that_are_broken_are_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("MESASCOPE_NATIVE", raising=False)
    (tmp_path / "broken_kernels.py").write_text("import a_library_that_does_not_exist\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(compiled, "MODULE", "broken_kernels")
    with pytest.raises(ImportError, match=r"a_library_that_does_not_exist.*MESASCOPE_NATIVE=0"):
        compiled.find_kernels()


def test_public_names() -> None:
    assert mesascope.mesa_attention is mesa_attention
    assert mesascope.MesaState.__name__ == "MesaState"
    assert {"MesaState", "mesa_attention"} <= set(dir(mesascope))
    with pytest.raises(AttributeError, match="has no attribute 'mesa_atention'"):
        _ = mesascope.mesa_atention
