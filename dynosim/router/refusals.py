"""Why a router may decline a request. The request is lost; the router and all others go on."""

from dynosim.errors import DynosimError


class RequestRefused(DynosimError):
    """A request that the router will not place; `http_status` is what a client is told."""

    http_status = 503


class NoEligibleWorker(RequestRefused):
    """No worker satisfies the request's constraints."""


class WorkersBusy(RequestRefused):
    """Every worker that could take the request is above a busy threshold."""


class QueueFull(RequestRefused):
    """The request would have to wait, and its class has no room left for waiting requests."""

    http_status = 529


class InvalidRequest(RequestRefused):
    """The request itself is wrong."""

    http_status = 400


class UnknownWorker(DynosimError):
    """News of a worker that has not joined, or has left."""
