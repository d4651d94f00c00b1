"""Listening sockets: bound early, so that a port in use is one message before anything starts."""

import errno
import socket
import sys

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
    return _bound(host, port, listens=True)


class HeldPort:
    """A port (0: any free one) for a process of ours that has yet to listen there.

    Until `close` Linux gives it to nobody who asks for just any, while `listening_socket` gets it;
    one that was merely free would be somebody's by chance. Other systems hold none so.
    Raises: LiveError as `listening_socket` does.
    """

    def __init__(self, host: str, port: int) -> None:
        is_held = sys.platform == "linux"
        self._socket = _bound(host, port, listens=not is_held)
        self.number: int = self._socket.getsockname()[1]
        if not is_held:
            self.close()

    def close(self) -> None:
        """Hold it no longer; harmless twice."""
        self._socket.close()


def _bound(host: str, port: int, *, listens: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        if listens:
            bound.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = str(error)
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "the port is in use; stop what listens there, or choose another with --port"
        raise LiveError(f"cannot listen on {host}:{port}: {reason}") from None
    return bound
