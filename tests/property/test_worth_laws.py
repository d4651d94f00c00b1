"""A tier that goes by worth, against the plain way of keeping one: a search through all it has."""

import random
from dataclasses import dataclass, field
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.blocks.retention import PINNED, PLAIN, Claim
from dynosim.engine.host_cache import Accesses, Span
from dynosim.engine.retaining_cache import RetainingCache

SEEDS = st.integers(0, 2**32 - 1)
DEFAULT = 35


@dataclass(eq=False)
class NaiveExtent:
    """The leading chunks of an extent, with all that was ever claimed of it."""

    num_chunks: int = 0
    is_busy: bool = False  # on its way in, or out
    claims: list[tuple[int, float]] = field(default_factory=list)  # (level, until)
    level: int = DEFAULT
    stamp: int = 0  # when it was used last
    said: int = 0  # when its level was last asked for

    def level_at(self, now_ms: float) -> int:
        return max(level if now_ms < until else DEFAULT for level, until in self.claims)


class NaiveTier:
    """Every chunk that goes is found by looking at all extents."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.extents: dict[int, NaiveExtent] = {}
        self.count = 0
        self.now_ms = 0.0

    def tick(self) -> int:
        self.count += 1
        return self.count

    def at(self, now_ms: float) -> None:
        """Claims end at their times, one after the other; whoever falls back is the youngest."""
        ends = {until for one in self.extents.values() for _, until in one.claims}
        for end_ms in sorted(end for end in ends if self.now_ms < end <= now_ms):
            due = [one for one in self.extents.values() if one.level != one.level_at(end_ms)]
            for one in sorted(due, key=lambda one: one.said):
                one.level, one.stamp = one.level_at(end_ms), self.tick()
                one.said = one.stamp
        self.now_ms = now_ms

    def offer(self, spans: list[Span]) -> list[Span] | None:
        new: list[Span] = []
        for span in spans:
            held = self.extents[span.content].num_chunks if span.content in self.extents else 0
            if span.first <= held < span.end:
                new.append(Span(span.content, held, span.end))
        lacking = sum(one.num_chunks for one in self.extents.values()) - self.capacity
        lacking += sum(span.end - span.first for span in new)
        left = {content: one.num_chunks for content, one in self.extents.items()}
        for _ in range(lacking):
            kept = {span.content for span in spans}
            free = [(one.level, one.stamp, content) for content, one in self.extents.items()
                    if left[content] and not one.is_busy and content not in kept
                    and one.level < PINNED]  # fmt: skip
            if not free:
                return None
            left[min(free)[2]] -= 1
        for content, number in left.items():
            self.extents[content].num_chunks = number
            if not number:
                del self.extents[content]
        for span in new:
            one = self.extents.setdefault(span.content, NaiveExtent())
            one.num_chunks, one.stamp = span.end, self.tick()
        return new

    def claim(self, content: int, claims: tuple[Claim, ...]) -> None:
        one = self.extents.get(content)
        if one is None:
            return
        one.claims += [(claim.level, self.now_ms + claim.duration_ms) for claim in claims]
        one.said = self.tick()
        if one.level != one.level_at(self.now_ms):
            one.level, one.stamp = one.level_at(self.now_ms), self.tick()

    def use(self, content: int) -> None:
        if content in self.extents:
            self.extents[content].stamp = self.tick()


def random_claims(rng: random.Random) -> tuple[Claim, ...]:
    if rng.random() < 0.3:
        return PLAIN
    level = rng.choice([-1, 0, 35, 80, 100])
    claims = (Claim(level, rng.choice([inf, rng.uniform(1, 50), 20.0])),)
    return (*claims, Claim(PINNED, rng.uniform(1, 40))) if rng.random() < 0.2 else claims


class Both:
    """A tier and its plain counterpart, told the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.capacity = rng.randint(4, 20)
        self.tier, self.naive = RetainingCache(self.capacity, "priority"), NaiveTier(self.capacity)
        self.stores: list[Span] = []  # under way
        self.loads: list[Span] = []

    def at(self, now_ms: float) -> None:
        self.tier.at(now_ms)
        self.naive.at(now_ms)

    def claim(self, contents: list[int], claims: tuple[Claim, ...]) -> None:
        for content in contents:
            self.tier.claim(content, claims)
            self.naive.claim(content, claims)

    def offer(self, contents: list[int]) -> None:
        spans = [Span(content, 0, self.rng.randint(1, 4)) for content in contents]
        new = self.tier.offer(spans, Accesses())
        assert new == self.naive.offer(spans)
        self.stores += new or []
        self.claim(contents, random_claims(self.rng))

    def end(self, contents: list[int]) -> None:
        self.claim(contents[::-1], random_claims(self.rng))
        accesses = Accesses()
        accesses.seen.update(dict.fromkeys(contents))
        self.tier.end(contents, accesses)
        for content in reversed(contents):
            self.naive.use(content)

    def load(self, content: int) -> None:
        if content in self.naive.extents:
            self.tier.use([Span(content, 0, 1)])
            self.naive.use(content)
            self.loads.append(Span(content, 0, 1))

    def end_copies(self) -> None:
        for copies, report in ((self.stores, self.tier.stored), (self.loads, self.tier.unpin)):
            while copies and self.rng.random() < 0.6:
                report([copies.pop(self.rng.randrange(len(copies)))])
        busy = {span.content for span in [*self.stores, *self.loads]}
        for content, one in self.naive.extents.items():
            one.is_busy = content in busy

    def check(self) -> None:
        kept = {content: one.num_chunks for content, one in self.naive.extents.items()}
        held = {content: self.tier.get(content) for content in range(8)}
        assert kept == {name: one.num_chunks for name, one in held.items() if one is not None}
        number = self.tier.num_stored - self.tier.num_evicted
        assert len(self.tier) == sum(kept.values()) == number <= self.capacity


@given(SEEDS)
@settings(max_examples=80, deadline=None)
def test_a_tier_by_worth_keeps_what_a_search_through_all_chunks_keeps(seed: int) -> None:
    rng = random.Random(seed)
    both, now_ms = Both(rng), 0.0
    for _ in range(80):
        now_ms += rng.choice([0.0, rng.uniform(0, 15), 20.0])
        both.at(now_ms)
        contents = rng.sample(range(8), rng.randint(1, 3))
        action = rng.random()
        if action < 0.6:
            both.offer(contents)
        elif action < 0.85:
            both.end(contents)
        else:
            both.load(contents[0])
        both.end_copies()
        both.check()


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_what_all_say_alike_changes_nothing(seed: int) -> None:
    """Claims of one and the same level, for good: what was used least recently goes, as by age."""
    rng = random.Random(seed)
    tiers = [RetainingCache(12, policy) for policy in ("priority", "lru")]
    for _ in range(60):
        spans = [Span(content, 0, 2) for content in rng.sample(range(12), 2)]
        for tier in tiers:
            accesses = Accesses()
            tier.stored(tier.offer(spans, accesses) or [])
            for span in reversed(spans):
                tier.claim(span.content, (Claim(80, inf),))
            tier.end([span.content for span in spans], accesses)
        assert tiers[0].evicted == tiers[1].evicted
