"""What the HTTP layer tells of its work; metrics are made of it elsewhere."""

from typing import Literal, Protocol

Stage = Literal["preprocess"]
RequestType = Literal["stream", "unary"]
Outcome = Literal["success", "error", "cancelled"]


class HttpObserver(Protocol):
    """Called synchronously, in the event loop."""

    def request_started(self, model: str, endpoint: str, request_type: RequestType) -> None:
        """A well-formed request for a known model; `endpoint` e.g. `chat_completions`."""
        ...

    def request_ended(
        self,
        model: str,
        endpoint: str,
        request_type: RequestType,
        outcome: Outcome,
        duration_s: float,
    ) -> None:
        """The answer is out, or will never be."""
        ...

    def stage_entered(self, stage: Stage) -> None:
        """A request is being templated and tokenized."""
        ...

    def stage_left(self, stage: Stage) -> None:
        """It is no longer."""
        ...


class NoObserver:
    """An `HttpObserver` that looks away."""

    def request_started(self, model: str, endpoint: str, request_type: RequestType) -> None:
        """See `HttpObserver`."""

    def request_ended(
        self,
        model: str,
        endpoint: str,
        request_type: RequestType,
        outcome: Outcome,
        duration_s: float,
    ) -> None:
        """See `HttpObserver`."""

    def stage_entered(self, stage: Stage) -> None:
        """See `HttpObserver`."""

    def stage_left(self, stage: Stage) -> None:
        """See `HttpObserver`."""
