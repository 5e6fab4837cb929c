"""Strictness for every test: shapes are checked, randomness is seeded, nothing reaches the network."""

import ipaddress
import sys
from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest

if not jaxtyping.config.jaxtyping_disable:  # by JAXTYPING_DISABLE=1
    # before anything imports mesascope, or its annotations stay unchecked; an int may stand for a float, as in PEP 484
    jaxtyping.install_import_hook("mesascope", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import torch
from hypothesis import settings

settings.register_profile("mesascope", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("mesascope")


class NetworkUseError(AssertionError):
    """A test tried to leave this machine."""


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: only unix sockets and the loopback interface (browser drivers, local engines) may be reached."""
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host is not None and not _is_local(host):
        raise NetworkUseError(f"{event}: {host!r} is not this machine")


def _is_local(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    """One thread, deterministic kernels (torch then also fills uninitialised memory with NaN), a fixed global seed."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """Annotations are not enforced, as for users: what arrives is judged by the function's own error messages."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
