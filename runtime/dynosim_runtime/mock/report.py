"""What a mock engine says of itself for planners: its load, and steps that it has lately computed.

As in the twin, loads are those after the step that is being computed has been planned.
"""

from collections import deque

import msgspec

from dynosim.engine.core import EngineCore
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, DRAINING, LOADING, PREFILLING, SPECULATING
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.planner.observation import Pass
from dynosim_runtime.errors import ApiError

PAGE = "/engine_report"
KEPT_STEPS = 4096  # the last ones, that may be asked for
_SEATED = (PREFILLING, DECODING, DRAINING, SPECULATING)


class MockReport(msgspec.Struct, frozen=True, kw_only=True):
    """A simulated engine's page; see `EngineReport`. `num_steps` are those of its life."""

    num_running: int
    num_waiting: int
    queued_prefill_tokens: int
    decode_kv_tokens: int
    queued_decode_kv_tokens: int
    used_kv_share: float
    num_steps: int
    passes: tuple[Pass, ...] = ()


class StepMemory:
    """The last steps of an engine, in real time: `speedup` times less than engine time."""

    def __init__(self, speedup: float) -> None:
        self.num_steps = 0
        self._speedup = speedup
        self._last: deque[Pass] = deque(maxlen=KEPT_STEPS)

    def note(self, plan: StepPlan) -> None:
        """A step has ended."""
        self.num_steps += 1
        self._last.append(
            Pass(
                (plan.end_ms - plan.start_ms) / self._speedup,
                plan.num_prefills,
                plan.prefill_tokens,
                plan.num_decodes,
                plan.decode_context_tokens,
            )
        )

    def since(self, after: int, limit: int) -> tuple[Pass, ...]:
        """At most `limit` of the steps behind the first `after`, evenly spread over them."""
        first = self.num_steps - len(self._last)
        new = self.num_steps - max(after, first)
        number = min(new, limit)
        begin = len(self._last) - new
        return tuple(self._last[begin + (2 * i + 1) * new // (2 * number)] for i in range(number))


def mock_report(
    core: EngineCore,
    steps: StepMemory,
    *,
    num_arriving: int,
    arriving_tokens: int,
    usable_blocks: int,
    is_decode: bool,
    query: tuple[int, int],
) -> MockReport:
    """What an engine is to answer to `query`, (steps it has told of, at most so many more).

    `num_arriving` requests, of `arriving_tokens` of prompts, are not with the scheduler yet.
    """
    to_compute = to_decode = 0
    if core.num_waiting:
        for sequence, _ in core.unfinished():
            if sequence.state in _SEATED:
                continue
            if sequence.generated_tokens or (is_decode and _is_handed_over(sequence)):
                to_decode += sequence.known_tokens
            else:
                to_compute += sequence.prompt_tokens - sequence.num_computed
    decodes = core.decodes
    return MockReport(
        num_running=core.num_running,
        num_waiting=core.num_waiting + num_arriving,
        queued_prefill_tokens=to_compute + arriving_tokens,
        decode_kv_tokens=max(0, decodes.context_tokens - decodes.count),
        queued_decode_kv_tokens=to_decode,
        used_kv_share=core.used_blocks / usable_blocks,
        num_steps=steps.num_steps,
        passes=steps.since(*query),
    )


def report_query(values: dict[str, str]) -> tuple[int, int]:
    """`after` and `limit` of a query string. Raises: ApiError if they are no numbers from 0 on."""
    try:
        after, limit = int(values.get("after", "0")), int(values.get("limit", "4"))
    except ValueError:
        after = limit = -1
    if after < 0 or not 0 <= limit <= KEPT_STEPS:
        raise ApiError(400, f"after, limit: expected numbers from 0 on, limit up to {KEPT_STEPS}")
    return after, limit


def _is_handed_over(sequence: EngineSequence) -> bool:
    """Whether a request's KV comes from elsewhere."""
    is_loading = sequence.state == LOADING
    return is_loading or sequence.remote_tokens > 0 or sequence.external_tokens > 0
