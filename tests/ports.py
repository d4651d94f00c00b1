"""Ports for servers that are told which one to take."""

import secrets
import socket
from contextlib import suppress

_OURS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody has.

    None of those that a system gives to whoever asks for any (from 32768 on, or 49152): it would be
    somebody's by chance before it is listened on.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_OURS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
    return ports
