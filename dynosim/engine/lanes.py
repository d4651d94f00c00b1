"""The copies between one device and the tier below it: a lane for each direction.

As a GPU's copy engines do, a lane carries out what it is given one after another. So each copy's
end is known when it is given: nobody has to come by while stores go on, only when a load ends, or a
store that somebody waits for.
"""

from dataclasses import dataclass

from dynosim.engine.pace import NEVER
from dynosim.engine.plan import CopyJob, HostWork


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSpec:
    """How long copies of blocks take: a set-up, then so much for each block."""

    store_setup_ms: float = 0.0
    store_block_ms: float = 0.0
    load_setup_ms: float = 0.0
    load_block_ms: float = 0.0
    loads_elsewhere: bool = False  # over links that others load over, too
    stores_are_heard: bool = False  # something follows from the end of a store at once


class CopyLanes:
    """Those of one engine; times are told by it.

    `next_load_ms` and `next_store_ms` are when the next load and store end; infinity without any.
    """

    __slots__ = (
        "_loads",
        "_loads_free_ms",
        "_spec",
        "_stores",
        "_stores_free_ms",
        "elsewhere",
        "next_load_ms",
        "next_store_ms",
        "stores_are_heard",
    )

    def __init__(self, spec: LaneSpec) -> None:
        self._spec = spec
        self.stores_are_heard = spec.stores_are_heard
        self._stores: list[CopyJob] = []  # few at a time
        self._loads: list[CopyJob] = []
        self._stores_free_ms = -NEVER  # when all stores given so far are done
        self._loads_free_ms = -NEVER
        self.next_load_ms = NEVER
        self.next_store_ms = NEVER
        self.elsewhere: list[CopyJob] = []  # loads that came to need other links, to be taken

    def begin(self, work: HostWork, start_ms: float) -> float:
        """A step would begin then; returns when it may. Its loads begin with it."""
        if work.flushed:
            flushed = set(work.flushed)
            for store in self._stores:
                if store.number in flushed:
                    start_ms = max(start_ms, store.ends_ms)
        for job in work.loads:
            self.begin_load(job, start_ms)
        return start_ms

    def begin_load(self, job: CopyJob, start_ms: float) -> None:
        """A load begins then, or when those before it are done."""
        spec = self._spec
        job.starts_ms = start_ms
        if job.beyond or spec.loads_elsewhere:
            self.elsewhere.append(job)
            if spec.loads_elsewhere or not job.spans:
                job.num_left = 0  # but those elsewhere
                return
        took_ms = spec.load_setup_ms + spec.load_block_ms * job.num_blocks
        start_ms = max(start_ms, self._loads_free_ms)
        self._loads_free_ms = start_ms + took_ms
        job.ends_ms = self._loads_free_ms
        self._loads.append(job)
        self.next_load_ms = self._loads[0].ends_ms

    def begin_stores(self, work: HostWork, start_ms: float) -> None:
        """Stores that were decided begin then, or when those before them are done."""
        spec = self._spec
        for job in work.stores:
            took_ms = spec.store_setup_ms + spec.store_block_ms * job.num_blocks
            self._stores_free_ms = max(start_ms, self._stores_free_ms) + took_ms
            job.ends_ms = self._stores_free_ms
            self._stores.append(job)
        self.next_store_ms = self._stores[0].ends_ms if self._stores else NEVER

    def take_stored(self, now_ms: float) -> list[int]:
        """The stores that have ended by then, by number."""
        stores = self._stores
        ended: list[int] = []
        while stores and stores[0].ends_ms <= now_ms:
            ended.append(stores.pop(0).number)
        self.next_store_ms = stores[0].ends_ms if stores else NEVER
        return ended

    def take_loaded(self, now_ms: float) -> list[CopyJob]:
        """The loads that have ended by then."""
        loads = self._loads
        ended: list[CopyJob] = []
        while loads and loads[0].ends_ms <= now_ms:
            ended.append(loads.pop(0))
        self.next_load_ms = loads[0].ends_ms if loads else NEVER
        return ended

    def stop(self) -> None:
        """The device is gone, and what was under way with it."""
        self._stores.clear()
        self._loads.clear()
        self.next_store_ms = self.next_load_ms = NEVER
