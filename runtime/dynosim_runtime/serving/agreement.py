"""Which workers a frontend can use beside each other: of which roles, and with which KV."""

from collections.abc import Callable, Iterable

from dynosim.errors import ConfigError
from dynosim_runtime.card import HANDING_OVER, PASSING_FIRST_TOKEN, LiveCard, Role


def check_role(card: LiveCard, role: Role) -> None:
    """Raises: ConfigError for a worker that has no place in such a pool."""
    if card.role != role:
        does = "serves whole requests" if card.role == "agg" else f"is there for {card.role}"
        wanted = "whole requests" if role == "agg" else "prefill and decode workers"
        raise ConfigError(
            f"worker {card.name} {does}, but this frontend's plan has {wanted} "
            "(start both from one plan)"
        )


def serves_whole_requests(card: LiveCard) -> None:
    """Raises: ConfigError for a worker of a pool of one phase."""
    check_role(card, "agg")


def check_handoff(card: LiveCard, *, first_token: str) -> None:
    """Raises: ConfigError for an engine that cannot hand KV over as the plan says."""
    if card.engine not in HANDING_OVER:
        raise ConfigError(
            f"worker {card.name}: {card.engine} engines do not hand KV over here "
            f"(engines that do: {', '.join(sorted(HANDING_OVER))})"
        )
    if first_token == "prefill" and card.engine not in PASSING_FIRST_TOKEN:
        raise ConfigError(
            f"worker {card.name}: cluster.handoff.first_token: prefill, but {card.engine}'s decode "
            "workers compute the first token themselves (set it to decode)"
        )


def check_agreement(card: LiveCard, others: Iterable[LiveCard]) -> None:
    """Raises: ConfigError naming both values where its KV would not fit one of the others."""
    for other in others:
        for what, of in _AGREED:
            mine, theirs = of(card), of(other)
            if None not in (mine, theirs) and mine != theirs:
                raise ConfigError(
                    f"{card.role} worker {card.name} and {other.role} worker {other.name} do not "
                    f"agree: {what} {mine} and {theirs}; KV can only be handed over if they do"
                )


_AGREED: tuple[tuple[str, Callable[[LiveCard], object]], ...] = (
    ("model", lambda card: card.model),
    ("engine", lambda card: card.engine),
    ("KV block size", lambda card: card.block_size),
    ("KV dtype", lambda card: card.kv_dtype),
)
