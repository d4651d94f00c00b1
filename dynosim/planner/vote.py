"""What load says of a pool: a replica more, one fewer or none, and why."""

import msgspec


class Vote(msgspec.Struct, frozen=True):
    """Replicas to add (+1, 0 or -1), in a word, with the sentences and figures that say why.

    `is_at_ease`: the engines do as many as they are, with the margin that fewer must keep.
    """

    step: int
    verdict: str
    reasons: tuple[str, ...]
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    is_at_ease: bool = False
