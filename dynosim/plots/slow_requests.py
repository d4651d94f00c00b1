"""The slowest requests of a run, and why, as a table for its page."""

from dynosim.metrics.wait_words import duration, reason, tokens
from dynosim.metrics.waits import Waits, slowest
from dynosim.records import RunResult, Trace

SHOWN = 10
TITLE = "Slowest requests"
HEADER = ("request", "why", "TTFT", "wait", "prefill", "worker", "to compute", "cached")
TEXT_COLUMNS = 2  # the first two
CAPTION = (
    "Longest times to the first token. A prompt ahead counts as computed evenly between its first "
    "step and its first token; dynosim why FOLDER REQUEST tells step by step."
)


def slow_requests(result: RunResult, trace: Trace) -> list[list[str]]:
    """A row of text for each, slowest first, columns as in HEADER."""
    waits, ids = Waits(result), trace.request_ids

    def name(index: int) -> str:
        return str(index) if ids is None else ids[index]

    rows = []
    for index in slowest(result.requests, SHOWN):
        wait = waits.of(index)
        if wait is None:
            continue
        waited_ms = wait.ttft_ms - wait.prefill_ms
        rows.append(
            [
                name(index), reason(wait, name), duration(wait.ttft_ms), duration(waited_ms),
                duration(wait.prefill_ms), str(wait.worker_id), tokens(wait.prefill_tokens),
                tokens(wait.cached_tokens),
            ]
        )  # fmt: skip
    return rows
