"""Why a router may decline a request. The request is lost; the router and all others go on."""

from dynosim.errors import DynosimError


class RequestRefusedError(DynosimError):
    """A request that the router will not place; `http_status` is what a client is told."""

    http_status = 503


class NoEligibleWorkerError(RequestRefusedError):
    """No worker satisfies the request's constraints."""


class WorkersBusyError(RequestRefusedError):
    """Every worker that could take the request is above a busy threshold."""


class QueueFullError(RequestRefusedError):
    """The request would have to wait, and its class has no room left for waiting requests."""

    http_status = 529


class InvalidRequestError(RequestRefusedError):
    """The request itself is wrong."""

    http_status = 400


class UnknownWorkerError(DynosimError):
    """News of a worker that has not joined, or has left."""
