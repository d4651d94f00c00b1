"""Requests whose parts are known say what their KV blocks are worth."""

from dataclasses import dataclass, replace

from dynosim.blocks.retention import RetentionClasses
from dynosim.records import IntArray, Retention, Trace

_CLASSES = RetentionClasses()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """What the requests of a workload say, by what they are and what their parts are.

    Durations in ms; None: for good, and of pins: none.
    """

    classes: RetentionClasses = _CLASSES
    history_duration_ms: float | None = None
    pin_ttl_ms: float | None = None
    pin_ends_with_session: bool = False
    sub_agent_duration_ms: float | None = None
    sub_agent_pin_ttl_ms: float | None = None

    def of(self, system_tokens: int, prompt_tokens: int, *, is_subagent: bool = False) -> Retention:
        """What a request says whose prompt begins with so many tokens of the system's."""
        duration_ms, pin_ttl_ms = self.history_duration_ms, self.pin_ttl_ms
        if is_subagent:
            duration_ms, pin_ttl_ms = self.sub_agent_duration_ms, self.sub_agent_pin_ttl_ms
        ranges = self.classes.ranges(
            system_tokens, prompt_tokens, duration_ms=duration_ms, is_subagent=is_subagent
        )
        ends = self.pin_ends_with_session and pin_ttl_ms is not None
        return Retention(ranges, pin_ttl_ms, pin_ends_with_session=ends)


def with_wording(trace: Trace, system_tokens: IntArray, wording: Wording) -> Trace:
    """The trace with priorities for system prompt (leading tokens, (n,)), history and answer."""
    known: dict[tuple[int, int], Retention] = {}
    column: list[Retention] = []
    for system, prompt in zip(system_tokens.tolist(), trace.input_tokens.tolist(), strict=True):
        if (system, prompt) not in known:
            known[system, prompt] = wording.of(system, prompt)
        column.append(known[system, prompt])
    return replace(trace, retention=tuple(column))
