"""KV from elsewhere and for elsewhere: who loads, who has loaded, and whose blocks are still read.

A request that loads holds its blocks but neither a seat nor tokens of a step. When its load has
ended it is *ready*: the next admissions look at those who are ready first, and make what came
hittable as they come to them. Of a load that failed the valid blocks count; if there are none, the
request gives its blocks back and is admitted like any other. There is no second load.
"""

from heapq import heapify, heappop, heappush

from dynosim.engine.kv_cache import KvCache
from dynosim.engine.sequence import LOADING, WAITING, Sequence

_Entry = tuple[int, float, str, int, Sequence]


class RemoteRequests:
    """Those of one engine. The requests that load or are ready count as waiting.

    `reserved_blocks` is what they lack to hold all their known tokens, and `tokens_ahead` more: no
    load may take that away.
    """

    __slots__ = (
        "_cache",
        "_is_fcfs",
        "_num_started",
        "_ready",
        "_tokens_ahead",
        "_valid_tokens",
        "held",
        "loads",
        "num_loading",
        "num_ready",
        "reserved_blocks",
    )

    def __init__(self, cache: KvCache, *, is_fcfs: bool, tokens_ahead: int = 0) -> None:
        self._cache = cache
        self._tokens_ahead = tokens_ahead
        self._is_fcfs = is_fcfs
        self._num_started = 0
        self.loads: dict[Sequence, int] = {}  # under way, by number; also of requests dropped since
        self.num_loading = 0  # of them, those whose requests wait
        self._ready: list[_Entry] = []  # heap, in the order of admission
        self._valid_tokens: dict[Sequence, int] = {}  # of the ready that nobody has come to yet
        self.num_ready = 0
        self.held: dict[Sequence, None] = {}  # ended, but their blocks have not been sent yet
        self.reserved_blocks = 0

    # ---- loads ---------------------------------------------------------------------------------

    def start(self, sequence: Sequence, step: int) -> None:
        """A request whose blocks have been taken begins to load."""
        sequence.state = LOADING
        sequence.load_step = step
        self.loads[sequence] = self._num_started
        self._num_started += 1
        self.num_loading += 1
        self.reserved_blocks += self._lacking(sequence)

    def end(self, sequence: Sequence, num_valid_tokens: int) -> None:
        """The load of a waiting request has ended: it is ready. Only whole blocks are valid."""
        number = self.loads.pop(sequence)
        self.num_loading -= 1
        self.num_ready += 1
        if num_valid_tokens < sequence.reserved_tokens:
            num_valid_tokens -= num_valid_tokens % self._cache.block_size
        self._valid_tokens[sequence] = num_valid_tokens
        if self._is_fcfs:
            entry = (0, 0.0, "", number, sequence)
        else:
            key = (sequence.priority, sequence.arrival_ms, sequence.request_id)
            entry = (*key, sequence.index, sequence)
        heappush(self._ready, entry)

    # ---- the ready -----------------------------------------------------------------------------

    def peek(self) -> Sequence:
        """The first of the ready, at least one; what it has got is hittable from now on."""
        sequence = self._ready[0][4]
        if sequence.state == LOADING:
            self._take_up(sequence)
        return sequence

    def pop(self) -> None:
        """It gets a seat."""
        sequence = heappop(self._ready)[4]
        self.num_ready -= 1
        self.reserved_blocks -= self._lacking(sequence)

    def _take_up(self, sequence: Sequence) -> None:
        sequence.state = WAITING
        num_valid = self._valid_tokens.pop(sequence)
        if num_valid > 0:
            sequence.num_computed = num_valid
            if num_valid == 1 and sequence.prompt_tokens == 1:
                sequence.external_tokens = 0  # it has to compute all, and vLLM looks it up anew
            self._cache.register(sequence, num_valid)
            return
        self.reserved_blocks -= self._lacking(sequence)
        self._cache.release(sequence)
        self.reserved_blocks += self._lacking(sequence)
        sequence.num_computed = 0
        sequence.cached_tokens = -1
        sequence.external_tokens = 0

    # ---- the end -------------------------------------------------------------------------------

    def has(self, sequence: Sequence) -> bool:
        """Whether a waiting request loads or is ready."""
        if sequence.state == LOADING:
            return True
        return self.num_ready > 0 and any([entry[4] is sequence for entry in self._ready])

    def drop(self, sequence: Sequence) -> bool:
        """Let go of one that loads or is ready; returns whether its blocks may be freed now."""
        self.reserved_blocks -= self._lacking(sequence)
        if sequence in self.loads:
            self.num_loading -= 1
            return False
        self._valid_tokens.pop(sequence, None)
        self._ready = [entry for entry in self._ready if entry[4] is not sequence]
        heapify(self._ready)
        self.num_ready -= 1
        return True

    def waiting(self) -> list[Sequence]:
        """All who load or are ready, in no particular order."""
        ready = [entry[4] for entry in self._ready]
        return ready + [sequence for sequence in self.loads if sequence.state == LOADING]

    def _lacking(self, sequence: Sequence) -> int:
        known = sequence.prompt_tokens + sequence.generated_tokens
        return self._cache.blocks_between(sequence.reserved_tokens, known + self._tokens_ahead)
