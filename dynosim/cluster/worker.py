"""One worker of the twin: an engine with a number, and what it has to tell."""

from dynosim.cluster.token_log import TokenLog
from dynosim.engine.engine import Engine
from dynosim.records import KvEvent
from dynosim.workers.ids import WorkerId


class Worker:
    """An engine and the log of its tokens, under the number that reports use."""

    __slots__ = ("engine", "token_log", "worker_id")

    def __init__(self, worker_id: WorkerId, engine: Engine, token_log: TokenLog) -> None:
        self.worker_id = worker_id
        self.engine = engine
        self.token_log = token_log

    def take_events(self) -> list[KvEvent]:
        """The KV events since the last call."""
        return self.engine.core.take_events()
