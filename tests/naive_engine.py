"""The cache of an engine that serves one request at a time, block by block, with its times.

Written from the rules alone: blocks without content are taken first, then cached ones in the order
in which they were freed; a request frees its last block first. A prefill step takes 10 ms, a decode
step 5. A block of a prompt is named by all ids up to its own, and what an answer fills by nothing
that anybody could ask for.
"""

from dataclasses import dataclass, field

PREFILL_MS, DECODE_MS = 10.0, 5.0
Chain = tuple[int, ...]


@dataclass
class NaiveEngine:
    """`history` tells what was known to be cached from which time on."""

    num_blocks: int
    block: int
    step_tokens: int
    is_async: bool
    free: list[object] = field(default_factory=list)  # what each free block holds: None or a name
    history: list[tuple[float, frozenset[Chain]]] = field(default_factory=list)
    idle_ms: float = 0.0
    _held: list[object] = field(default_factory=list)
    _computed: int = 0

    def __post_init__(self) -> None:
        self.free = [None] * self.num_blocks

    def serve(self, at_ms: float, ids: Chain, last_tokens: int, output_tokens: int) -> int:
        """Serve a request while nothing else runs; returns how many of its tokens were cached."""
        assert at_ms >= self.idle_ms
        prompt = self.block * (len(ids) - 1) + last_tokens
        names = [ids[: depth + 1] for depth in range(prompt // self.block)]
        hits = 0
        while hits < (prompt - 1) // self.block and names[hits] in self.free:
            hits += 1
        for name in names[:hits]:
            self.free.remove(name)
        self._held, self._computed = list(names[:hits]), hits * self.block
        now_ms = at_ms
        told: list[float] = []
        while self._computed < prompt:
            now_ms += PREFILL_MS
            self._compute(min(self.step_tokens, prompt - self._computed), names)
            told.append(now_ms)
            self.history.append((self._told_ms(told), self._known()))
        for _ in range(output_tokens - 1):
            now_ms += DECODE_MS
            self._compute(1, names)
            told.append(now_ms)
            self.history.append((self._told_ms(told), self._known()))
        for name in reversed(self._held):
            if name is None:
                self.free.insert(0, None)
            else:
                self.free.append(name)
        self.idle_ms = now_ms
        return hits * self.block

    def known_at(self, time_ms: float, ids: Chain) -> int:
        """Leading blocks of a prompt that were known to be cached at a time."""
        known: frozenset[Chain] = frozenset()
        for since_ms, cached in self.history:
            if since_ms <= time_ms:
                known = cached
        depth = 0
        while depth < len(ids) and ids[: depth + 1] in known:
            depth += 1
        return depth

    def _told_ms(self, ends_ms: list[float]) -> float:
        """A step's changes are told at its end; with a pipeline, at the end of the one before."""
        return ends_ms[max(len(ends_ms) - 2, 0)] if self.is_async else ends_ms[-1]

    def _compute(self, num_tokens: int, names: list[Chain]) -> None:
        """Take blocks for so many tokens, and give full ones their names."""
        self._computed += num_tokens
        while len(self._held) < -(-self._computed // self.block):
            self.free.pop(0)
            self._held.append(None)
        for depth in range(self._computed // self.block):
            self._held[depth] = names[depth] if depth < len(names) else object()

    def _known(self) -> frozenset[Chain]:
        return frozenset(n for n in (*self.free, *self._held) if isinstance(n, tuple))
