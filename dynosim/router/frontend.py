"""What a frontend does with a request before and after its worker is chosen, as times."""

from dataclasses import dataclass, fields

from dynosim.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendSpec:
    """Times of the frontend's stages; requests do not wait for each other in them.

    A request is preprocessed (`preprocess_ms`, and more for each token of its prompt), routed and
    dispatched, one after the other. It is placed when all are over, though a frontend chooses its
    worker before it dispatches. Before `startup_ms` the frontend takes no request: who comes waits.

    Raises: ConfigError naming a time below 0.
    """

    preprocess_ms: float = 0.0
    preprocess_us_per_token: float = 0.0
    route_ms: float = 0.0
    dispatch_ms: float = 0.0
    startup_ms: float = 0.0

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"frontend.{one.name}: expected at least 0, got {value}")
