"""The strictness of conftest.py is really on."""

import socket
import warnings

import jaxtyping
import pytest
import torch

from mesascope.ops import linear_attention


def test_shape_annotations_are_enforced() -> None:
    q, k = torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5)
    with pytest.raises(jaxtyping.TypeCheckError, match="linear_attention"):
        linear_attention(q, k, k)


def test_the_network_is_out_of_reach() -> None:
    # TEST-NET-1 of RFC 5737, which belongs to nobody
    with socket.socket() as connection, pytest.raises(AssertionError, match=r"192\.0\.2\.1.* is not this machine"):
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(AssertionError, match="is not this machine"):
        socket.getaddrinfo("example.org", 80)


def test_this_machine_is_within_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=5):
        pass


def test_warnings_are_errors() -> None:
    with pytest.raises(UserWarning, match="careful"):
        warnings.warn("careful", UserWarning, stacklevel=1)


def test_uninitialised_memory_is_poisoned() -> None:
    assert bool(torch.empty(100).isnan().all())
