"""Addresses to listen on, and what others are told to connect to."""

import os
import socket

WILDCARDS = ("", "*", "0.0.0.0", "::")


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can connect there."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def advertised_host(host: str) -> str:
    """What others connect to: the address itself, or this machine's if it stands for all of its.

    In Kubernetes that is the pod's (variable POD_IP).
    """
    if host not in WILDCARDS:
        return host
    return os.environ.get("POD_IP") or socket.gethostname()


def http_url(host: str, port: int) -> str:
    """The base of a server's addresses, without a slash at the end."""
    name = advertised_host(host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def without_credentials(url: str) -> str:
    """An address that can be shown: logs and pages have more readers than a password should."""
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"
