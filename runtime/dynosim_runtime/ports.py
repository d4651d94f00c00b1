"""Listening sockets: bound early, so that a port in use is one message before anything starts."""

import errno
import socket

from dynosim.errors import ConfigError
from dynosim_runtime.errors import LiveError

BACKLOG = 4096
MAX_PORT = 65535


def check_port(port: int | None) -> None:
    """Raises: ConfigError for one that no machine has; None and 0 (any free one) are fine."""
    if port is not None and not 0 <= port <= MAX_PORT:
        raise ConfigError(f"--port {port}: expected 0 to {MAX_PORT}")


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on `host` and `port` (0: any free port).

    Raises: LiveError if the port is in use or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "the port is in use; stop what listens there, or choose another with --port"
        raise LiveError(f"cannot listen on {host}:{port}: {reason}") from None
    return bound
