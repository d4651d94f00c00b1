"""From `file:DIR`, `etcd:HOST:PORT` or `kubernetes:NAMESPACE` to a discovery."""

import os
import tempfile
from pathlib import Path

from dynosim.config.live import LiveConfig
from dynosim.errors import ConfigError
from dynosim_runtime.discovery.base import Discovery

FORMS = "file:DIR, etcd:HOST:PORT or kubernetes:NAMESPACE"
ETCD_PORT = 2379


def make_discovery(spec: str, lease_s: float) -> Discovery:
    """The discovery that `spec` names; a worker not heard of for `lease_s` is gone.

    Raises: ConfigError for another form; LiveError for a folder that cannot be used, or a
    Kubernetes name space outside of a cluster.
    """
    kind, _, place = spec.partition(":")
    if kind == "file" and place:
        from dynosim_runtime.discovery.file import FileDiscovery

        return FileDiscovery(Path(place).expanduser(), lease_s)
    if kind == "etcd" and place:
        from dynosim_runtime.discovery.etcd import EtcdDiscovery

        return EtcdDiscovery(etcd_url(place), lease_s)
    if kind == "kubernetes":
        from dynosim_runtime.discovery.kubernetes import KubernetesDiscovery, in_cluster

        return KubernetesDiscovery(in_cluster(place or None))
    raise ConfigError(f"discovery {spec!r}: expected {FORMS}")


def discovery_spec(live: LiveConfig) -> str:
    """The discovery of a plan, in the form that `make_discovery` takes."""
    if live.discovery_endpoint is not None:
        return f"{live.discovery}:{live.discovery_endpoint}"
    if live.discovery == "file":
        return f"file:{default_folder()}"
    return f"etcd:127.0.0.1:{ETCD_PORT}" if live.discovery == "etcd" else "kubernetes:"


def default_folder() -> Path:
    """Where this user's workers and frontends meet if nothing else is said."""
    return Path(tempfile.gettempdir()) / f"dynosim-{os.getuid()}" / "workers"


def etcd_url(place: str) -> str:
    """The address of etcd's HTTP gateway. Raises: ConfigError if it is not HOST:PORT."""
    host, _, port = place.removeprefix("http://").rstrip("/").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"discovery etcd:{place}: expected etcd:HOST:PORT")
    return f"http://{host}:{port}"
