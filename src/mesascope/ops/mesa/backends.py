"""The backends of mesa attention, and the one place where one of them is chosen."""

from mesascope.errors import InputError, suggest
from mesascope.ops.kernels import NEEDED_BY_KERNELS
from mesascope.ops.mesa import native
from mesascope.ops.mesa.case import Case
from mesascope.ops.mesa.portable import PORTABLE, Attend


def native_available() -> bool:
    """Whether there are compiled kernels that run on this machine."""
    return native.available()


def native_supports(case: Case) -> bool:
    """Whether the compiled kernels, if there are any, compute this case."""
    return native.available() and native.supports(case)


def choose(backend: str, case: Case) -> Attend:
    """The function behind a name.

    "auto" is native where there are compiled kernels, all operands are on the CPU and the kernels support the case;
    chunked otherwise.

    Raises:
        InputError: there is no such backend, or no compiled kernels for it.
    """
    if backend == "auto":
        return native.compute if native_supports(case) else PORTABLE["chunked"]
    if backend in PORTABLE:
        return PORTABLE[backend]
    if backend != "native":
        known = ("auto", "native", *PORTABLE)
        raise InputError(f"backend: got {backend!r}, but it must be one of {known}; {suggest(backend, known)}")
    if not native.available():
        raise InputError(
            "backend: got 'native', but this installation has no compiled kernels for this machine; install mesascope "
            f'again with {NEEDED_BY_KERNELS}, or use backend="chunked" (backend="auto" chooses by itself)'
        )
    return native.attend
