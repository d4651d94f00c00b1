"""A request between its prefill and its decode worker: who has it, and what is under way for it."""

from dynosim.cluster.pool import Worker
from dynosim.engine.sequence import Sequence
from dynosim.memory.network import Transfer


class Passage:
    """What is known of one request in flight."""

    __slots__ = (
        "decode",
        "index",
        "is_dispatched",
        "last_token_ms",
        "prefill",
        "reserved_ms",
        "source",
        "target",
        "tokens",
        "transfer",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.is_dispatched = False  # some worker has had it
        self.tokens = 0  # that the client has got when it was last placed
        self.last_token_ms = 0.0
        self.source: Worker | None = None  # computes its prompt, or holds its KV
        self.prefill: Sequence | None = None  # there
        self.target: Worker | None = None
        self.decode: Sequence | None = None
        self.transfer: Transfer | None = None
        self.reserved_ms = 0.0  # when the blocks for its KV were taken
