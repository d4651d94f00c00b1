"""The twin: simulated engines, their load and their router, driven in virtual time."""

from dynosim.cluster.simulate import check_capacity, check_requests_fit, simulate

__all__ = ["check_capacity", "check_requests_fit", "simulate"]
