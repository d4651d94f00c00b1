"""Requests whose parts are known say what their KV blocks are worth."""

from dataclasses import replace

from dynosim.blocks.retention import RetentionClasses
from dynosim.records import IntArray, Retention, Trace


def with_classes(
    trace: Trace,
    system_tokens: IntArray,
    classes: RetentionClasses,
    *,
    history_duration_ms: float | None = None,
    pin_ttl_ms: float | None = None,
) -> Trace:
    """The trace with priorities for system prompt (leading tokens, (n,)), history and answer."""
    known: dict[tuple[int, int], Retention] = {}
    column: list[Retention] = []
    for system, prompt in zip(system_tokens.tolist(), trace.input_tokens.tolist(), strict=True):
        if (system, prompt) not in known:
            ranges = classes.ranges(system, prompt, duration_ms=history_duration_ms)
            known[system, prompt] = Retention(ranges, pin_ttl_ms)
        column.append(known[system, prompt])
    return replace(trace, retention=tuple(column))
