"""Ports that are held for a process which is yet to listen there."""

import socket
import sys

import pytest

from dynosim_runtime.errors import LiveError
from dynosim_runtime.ports import HeldPort, listening_socket

HOST = "127.0.0.1"


def test_a_held_port_is_for_who_asks_for_it() -> None:
    held = HeldPort(HOST, 0)
    with listening_socket(HOST, held.number) as listener:
        with socket.create_connection((HOST, held.number)) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    with listening_socket(HOST, held.number):  # and again: who listened may have crashed
        pass
    held.close()
    held.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a port cannot be held")
def test_nobody_gets_a_held_port_by_chance() -> None:
    held = HeldPort(HOST, 0)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((HOST, held.number))
    held.close()
    with socket.socket() as other:
        other.bind((HOST, held.number))


def test_a_port_where_somebody_listens_cannot_be_held() -> None:
    with listening_socket(HOST, 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(LiveError, match=f"{HOST}:{port}: the port is in use"):
            HeldPort(HOST, port)
