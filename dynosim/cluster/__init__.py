"""The twin: simulated engines, their load and their router, driven in virtual time."""

from dynosim.cluster.simulate import Progress, check_requests_fit, simulate
from dynosim.cluster.spec import ClusterSpec, PoolSpec, RunOptions

__all__ = [
    "ClusterSpec",
    "PoolSpec",
    "Progress",
    "RunOptions",
    "check_requests_fit",
    "simulate",
]
