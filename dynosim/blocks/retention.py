"""What requests say of the KV blocks that they use: how much these are worth, and for how long.

All that a request says (`dynosim.records.Retention`) comes down to *claims* of a level for a
duration, which runs from the moment when the request lets its block go. What several requests claim
of one block adds up to its `Worth`: the highest level counts, and a claim whose time is over counts
as the default. The order in which a cache gives blocks up follows: the lowest level first, and the
longest unused first within a level.

This is about blocks of any tier; it knows no cache and no clock.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from dynosim.records import Retention, RetentionRange

DEFAULT_PRIORITY: Final = 35
"""Of a block of which nobody says anything. Source: TensorRT-LLM's `KvCacheRetentionConfig`."""
HIGHEST_PRIORITY: Final = 100
PINNED: Final = 101
"""Level of pinned blocks: the last to go."""
EPHEMERAL: Final = -1
"""Level of ephemeral blocks: the first to go, below any priority."""
FOR_GOOD: Final = float("inf")
NOWHERE: Final = -1
_NONE: Final = -2


class Claim(NamedTuple):
    """A level that a request claims for a block, for so long after it lets go of it.

    `session`: a pin that ends with that one, if not before; -1: no matter which.
    """

    level: int
    duration_ms: float
    session: int = -1


PLAIN: Final = (Claim(DEFAULT_PRIORITY, FOR_GOOD),)
"""What a request claims that says nothing."""


def claims_of(
    retention: Retention, token: int, *, is_pinned: bool, session: int = -1
) -> tuple[Claim, ...]:
    """What a request of a session claims of a block with this first token; `is_pinned`: a pin is
    about it."""
    claims: tuple[Claim, ...] = PLAIN
    if retention.is_ephemeral:
        claims = (Claim(EPHEMERAL, FOR_GOOD),)
    for span in retention.ranges:
        if span.start <= token and (span.end is None or token < span.end):
            duration_ms = FOR_GOOD if span.duration_ms is None else span.duration_ms
            claims = (Claim(span.priority, duration_ms),)
    if is_pinned and retention.pin_ttl_ms is not None:
        until = session if retention.pin_ends_with_session else -1
        claims = (*claims, Claim(PINNED, retention.pin_ttl_ms, until))
    return claims


def cut_tokens(retention: Retention) -> Iterator[int]:
    """Tokens before which blocks of different worth may part."""
    for span in retention.ranges:
        yield span.start
        if span.end is not None:
            yield span.end


class BlockClaims:
    """What one request claims of the blocks that it holds in a cache.

    `path` has an entry for each extent that its prompt goes through, `own` is of the blocks behind
    it. `session` is the number of its session if that matters to its blocks, being ephemeral or
    pinned as long as it lasts, -1 otherwise; `ends_session`: nobody of that comes after it.
    """

    __slots__ = ("ends_session", "own", "path", "session")

    def __init__(
        self,
        path: list[tuple[Claim, ...]],
        own: tuple[Claim, ...],
        *,
        session: int = -1,
        ends_session: bool = False,
    ) -> None:
        self.path = path
        self.own = own
        self.session = session
        self.ends_session = ends_session


def block_claims(
    retention: Retention,
    extent_blocks: Sequence[int],
    block_size: int,
    prompt_tokens: int,
    *,
    session: int = -1,
    ends_session: bool = False,
) -> BlockClaims:
    """The claims of a request whose path goes through extents of so many blocks.

    A pin is for the full blocks of its prompt.
    """
    path: list[tuple[Claim, ...]] = []
    block = 0
    for num_blocks in extent_blocks:
        is_pinned = (block + 1) * block_size <= prompt_tokens
        token = block * block_size
        path.append(claims_of(retention, token, is_pinned=is_pinned, session=session))
        block += num_blocks
    own = claims_of(retention, prompt_tokens, is_pinned=False)
    if not (retention.is_ephemeral or retention.pin_ends_with_session or ends_session):
        return BlockClaims(path, own)
    return BlockClaims(path, own, session=session, ends_session=ends_session)


class Worth:
    """All that has been claimed of a block, or of blocks that share everything."""

    __slots__ = ("_high", "_lasting", "_low", "_low_until_ms", "_pins")

    def __init__(self) -> None:
        self._lasting = _NONE  # the highest level that has no end
        # Levels above the default that have one: (until, level), later ones lower.
        self._high: list[tuple[float, int]] = []
        # The highest below it, while all of these last: the first that ends makes it the default.
        self._low = _NONE
        self._low_until_ms = FOR_GOOD
        self._pins: dict[int, float] | None = None  # those of sessions: until when, by session

    def add(self, claims: tuple[Claim, ...], now_ms: float) -> None:
        """A request that claims this lets go of it now."""
        for claim in claims:
            if claim.session >= 0:
                self._pin(claim.session, now_ms + claim.duration_ms)
            elif claim.duration_ms == FOR_GOOD or claim.level == DEFAULT_PRIORITY:
                self._lasting = max(self._lasting, claim.level)
            elif claim.level > DEFAULT_PRIORITY:
                self._add_high(claim.level, now_ms + claim.duration_ms)
            else:
                self._low = max(self._low, claim.level)
                self._low_until_ms = min(self._low_until_ms, now_ms + claim.duration_ms)

    def merge(self, other: "Worth") -> None:
        """All that has been claimed of it elsewhere counts here, too."""
        self._lasting = max(self._lasting, other._lasting)
        for until_ms, level in other._high:
            self._add_high(level, until_ms)
        self._low = max(self._low, other._low)
        self._low_until_ms = min(self._low_until_ms, other._low_until_ms)
        for session, until_ms in (other._pins or {}).items():
            self._pin(session, until_ms)

    @property
    def sessions(self) -> list[int]:
        """Those that pin it as long as they last."""
        return list(self._pins or ())

    def end_session(self, session: int) -> bool:
        """A session is over, and with it its pin: as if that had never been. Returns whether there
        was one."""
        return self._pins is not None and self._pins.pop(session, None) is not None

    def _pin(self, session: int, until_ms: float) -> None:
        if self._pins is None:
            self._pins = {}
        self._pins[session] = max(self._pins.get(session, until_ms), until_ms)

    def _add_high(self, level: int, until_ms: float) -> None:
        """Of two the one matters that is higher, or that lasts longer."""
        if any([other[0] >= until_ms and other[1] >= level for other in self._high]):
            return
        kept = [other for other in self._high if other[0] > until_ms or other[1] > level]
        kept.append((until_ms, level))
        kept.sort()
        self._high = kept

    def level(self, now_ms: float) -> int:
        """Its level; what ends at `now_ms` has ended. Time must not go back."""
        high = self._high
        while high and high[0][0] <= now_ms:
            high.pop(0)
            self._lasting = max(self._lasting, DEFAULT_PRIORITY)
        if self._low_until_ms <= now_ms:
            self._low, self._low_until_ms = _NONE, FOR_GOOD
            self._lasting = max(self._lasting, DEFAULT_PRIORITY)
        if self._pins and self._is_pinned(self._pins, now_ms):
            return PINNED
        level = max(self._lasting, self._low)
        return max(level, high[0][1]) if high else level

    def _is_pinned(self, pins: dict[int, float], now_ms: float) -> bool:
        """Whether the pin of a session still holds; those whose time is over go."""
        for session in [one for one, until_ms in pins.items() if until_ms <= now_ms]:
            del pins[session]
            self._lasting = max(self._lasting, DEFAULT_PRIORITY)
        return len(pins) > 0

    @property
    def until_ms(self) -> float:
        """When the level that `level` told may change by itself; infinity: never."""
        if self._pins:
            last_ms = max(self._pins.values())
            is_pinned = len(self._high) > 0 and self._high[0][1] == PINNED
            return max(last_ms, self._high[0][0]) if is_pinned else last_ms
        if self._high:
            return self._high[0][0] if self._high[0][1] > self._lasting else FOR_GOOD
        return self._low_until_ms if self._lasting < DEFAULT_PRIORITY else FOR_GOOD


class Standing:
    """What a block, or an extent, is worth, and its place among those to be given up."""

    __slots__ = ("level", "place", "worth")

    def __init__(self) -> None:
        self.worth = Worth()
        self.level = DEFAULT_PRIORITY  # while it has a place
        self.place = NOWHERE  # a number that grows with the time of getting one


def moved(retention: Retention, num_tokens: int) -> Retention:
    """The same of a request with so many more tokens in front; they go with its first one's."""

    def behind(token: int) -> int:
        return token + num_tokens if token else 0

    ranges = tuple(
        RetentionRange(
            behind(span.start),
            None if span.end is None else span.end + num_tokens,
            span.priority,
            span.duration_ms,
        )
        for span in retention.ranges
    )
    return replace(retention, ranges=ranges)


class RetentionClasses(NamedTuple):
    """Priorities by what tokens are, for requests whose parts are known. 0 goes first, 100 last.

    The defaults follow the worth that blocks of agents have: a system prompt with its tools is used
    in every turn, history in all later ones; thinking and what a sub-agent leaves, by nobody.
    """

    system_priority: int = 100
    history_priority: int = 80
    output_priority: int = 1
    subagent_priority: int = 1

    def ranges(
        self,
        system_tokens: int,
        prompt_tokens: int,
        *,
        duration_ms: float | None = None,
        is_subagent: bool = False,
    ) -> tuple[RetentionRange, ...]:
        """Of a request whose prompt begins with so many tokens of the system's.

        History keeps its priority for `duration_ms`; None: for good.
        """
        system_tokens = min(system_tokens, prompt_tokens)
        history, output = self.history_priority, self.output_priority
        if is_subagent:
            history = output = self.subagent_priority
        system = RetentionRange(0, system_tokens, self.system_priority)
        told = RetentionRange(system_tokens, prompt_tokens, history, duration_ms)
        answer = RetentionRange(prompt_tokens, None, output)
        return (*[part for part in (system, told) if part.start != part.end], answer)
