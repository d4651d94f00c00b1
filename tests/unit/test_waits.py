"""What a request waited for, against queues worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from clusters import equal_workers

from dynosim.cluster import RunOptions, simulate
from dynosim.engine.spec import EngineSpec
from dynosim.metrics.story import Happening, Stories
from dynosim.metrics.wait_words import duration, reason, sentence, tokens
from dynosim.metrics.waits import Ahead, Wait, Waits, slowest
from dynosim.records import RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

STEP_MS, TOKEN_MS = 10.0, 1.0  # of a step, and of each prompt token in it
EXACT = pytest.approx


def run(
    asks: Sequence[tuple[float, int, int]],
    *,
    trail: bool = True,
    workers: int = 1,
    outside_ms: float = 0.0,
    mode: str = "round-robin",
    **engine: int,
) -> RunResult:
    """Requests of (arrival, prompt, answer), nothing shared."""
    arrivals, prompts, answers = zip(*asks, strict=True)
    trace = Trace(
        arrival_ms=np.array(arrivals, float),
        input_tokens=np.array(prompts),
        output_tokens=np.array(answers),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(len(asks) + 1, np.int64),
        trace_block_size=16,
    )
    spec = replace(EngineSpec(num_gpu_blocks=1000, max_model_len=4096), **engine)
    spec = replace(spec, max_model_len=min(spec.max_model_len, spec.capacity_tokens))
    times = LinearModel(
        base_ms=STEP_MS, per_prefill_token_ms=TOKEN_MS, per_decode_ms=0, per_context_token_ms=0
    )
    times.ingress_ms = times.egress_ms = outside_ms
    routing = RoutingSpec(RouterSpec(spec.block_size, mode=mode))
    cluster = equal_workers(spec, times, num_workers=workers, routing=routing)
    return simulate(trace, cluster, RunOptions(records_trail=trail))


def wait_of(result: RunResult, index: int) -> Wait:
    wait = Waits(result).of(index)
    assert wait is not None
    return wait


THREE = [(0.0, 100, 1), (0.0, 60, 1), (0.0, 40, 1)]
"""With 80 tokens a step: 80 of the first; its last 20 with all 60 of the second; the third's 40."""


@pytest.mark.parametrize(
    ("index", "behind_ms", "prefill_ms", "ahead"),
    [
        (0, 0.0, 180.0, ()),
        (1, 90.0, 90.0, (Ahead(0, 80, 90.0),)),
        (2, 180.0, 50.0, (Ahead(0, 100, 180.0), Ahead(1, 60, 90.0))),
    ],
)
def test_a_queue_of_three_behind_each_others_prompts(
    index: int, behind_ms: float, prefill_ms: float, ahead: tuple[Ahead, ...]
) -> None:
    wait = wait_of(run(THREE, max_num_batched_tokens=80, max_num_seqs=8), index)
    assert wait.behind_prefill_ms == EXACT(behind_ms) and wait.prefill_ms == EXACT(prefill_ms)
    assert (wait.seat_ms, wait.blocks_ms, wait.step_ms, wait.router_ms) == (0, 0, 0, 0)
    assert wait.ttft_ms == EXACT(behind_ms + prefill_ms)
    assert wait.ahead == ahead


def test_the_sentence_names_who_was_ahead() -> None:
    result = run(THREE, max_num_batched_tokens=80, max_num_seqs=8)
    said = sentence(wait_of(result, 2), str)
    assert said == (
        "230 ms to first token: 180 ms behind request 0's 100-token prefill on worker 0, 50 ms "
        "computing its own 40 tokens"
    )


def test_without_a_trail_prompts_count_as_computed_evenly() -> None:
    wait = wait_of(run(THREE, trail=False, max_num_batched_tokens=80, max_num_seqs=8), 1)
    assert wait.ahead == (Ahead(0, 50, 90.0),)  # 100 tokens in 180 ms, of which it waited 90
    assert wait.behind_prefill_ms == EXACT(90.0)


def test_a_seat_is_waited_for_while_others_decode() -> None:
    result = run([(0.0, 10, 6), (0.0, 10, 1)], max_num_seqs=1, max_num_batched_tokens=80)
    wait = wait_of(result, 1)
    # One step of 10 tokens, then five of decoding; only then is the seat free.
    assert wait.behind_prefill_ms == EXACT(STEP_MS + 10)
    assert (wait.seat_ms, wait.blocks_ms) == (EXACT(5 * STEP_MS), 0)
    assert "for a seat on worker 0" in reason(wait, str)


def test_blocks_are_waited_for_while_seats_are_free() -> None:
    # Four usable blocks of 16: the first request needs three of them, the second two.
    result = run(
        [(0.0, 40, 6), (0.0, 30, 1)], max_num_seqs=8, num_gpu_blocks=5, max_num_batched_tokens=80
    )
    wait = wait_of(result, 1)
    assert (wait.seat_ms, wait.blocks_ms) == (0, EXACT(5 * STEP_MS))
    assert "for KV blocks on worker 0" in reason(wait, str)


def test_who_comes_in_a_step_waits_for_its_end() -> None:
    result = run([(0.0, 10, 9), (27.0, 10, 1)], max_num_seqs=8, max_num_batched_tokens=80)
    wait = wait_of(result, 1)  # steps end at 20, 30, 40
    assert wait.step_ms == EXACT(3.0) and wait.behind_prefill_ms == wait.seat_ms == 0
    assert wait.prefill_ms == EXACT(STEP_MS + 10)


def test_the_way_to_the_engine_is_no_queue() -> None:
    wait = wait_of(run([(0.0, 10, 1)], outside_ms=4.0), 0)
    assert wait.outside_ms == EXACT(4.0) and wait.queue_ms == EXACT(0.0)
    assert wait.prefill_ms == EXACT(STEP_MS + 10 + 4.0)


def test_idle_workers_are_named_where_a_request_waited() -> None:
    result = run([(0.0, 500, 1), (0.0, 10, 1), (100.0, 10, 1)], workers=2)
    wait = wait_of(result, 2)
    assert (wait.worker_id, wait.idle_workers) == (0, (1,))
    assert reason(wait, str).endswith("; worker 1 was idle")
    assert wait_of(result, 0).idle_workers == (0, 1)
    assert "idle" not in reason(wait_of(result, 0), str)  # it did not wait


def test_the_reason_of_the_choice_is_told_where_it_matters() -> None:
    result = run([(0.0, 500, 1), (0.0, 10, 1), (100.0, 10, 1)], workers=2)
    said = sentence(wait_of(result, 2), str, choice="the router sent it there for 64 cached tokens")
    assert said.endswith("; worker 1 was idle, the router sent it there for 64 cached tokens")


def test_the_parts_add_up_for_every_request() -> None:
    rng = np.random.default_rng(4)
    asks = [(float(row) * 7, *map(int, rng.integers(1, 90, 2))) for row in range(80)]
    result = run(asks, workers=2, outside_ms=2.5, max_num_seqs=3, max_num_batched_tokens=64,
                 num_gpu_blocks=24)  # fmt: skip
    assert result.num_preemptions > 0
    waits = Waits(result)
    for index in range(len(asks)):
        wait = waits.of(index)
        assert wait is not None
        total = wait.outside_ms + wait.router_ms + wait.queue_ms + wait.prefill_ms
        assert total == EXACT(wait.ttft_ms)
        assert min(wait.behind_prefill_ms, wait.seat_ms, wait.blocks_ms, wait.step_ms) >= 0


def test_a_rejected_request_has_no_wait() -> None:
    result = run([(0.0, 5000, 1), (0.0, 10, 1)])
    assert Waits(result).of(0) is None
    assert slowest(result.requests, 5) == [1]
    assert [one.kind for one in Stories(result).of(0)] == ["arrived", "ended"]


# ---- the story -----------------------------------------------------------------------------------


def told(story: Sequence[Happening], kind: str) -> list[tuple[float, float]]:
    return [(one.at_ms, one.until_ms) for one in story if one.kind == kind]


def test_a_story_has_every_chunk_and_what_came_between() -> None:
    result = run(
        [(0.0, 100, 4), (0.0, 60, 1), (0.0, 40, 1)], max_num_batched_tokens=80, max_num_seqs=8
    )
    story = Stories(result).of(0)
    assert [one.kind for one in story] == [
        "arrived", "routed", "waited", "prefilled", "prefilled", "first_token", "decoded",
        "decoded", "ended",
    ]  # fmt: skip
    assert told(story, "prefilled") == [(0, 90), (90, 180)]
    chunks = [one.facts for one in story if one.kind == "prefilled"]
    assert [(one["num_tokens"], one["computed_before"]) for one in chunks] == [(80, 0), (20, 80)]
    # The third prompt is computed beside its first decode step; two more steps are its own.
    assert told(story, "decoded") == [(180, EXACT(230)), (EXACT(230), EXACT(250))]
    decoded = [one.facts for one in story if one.kind == "decoded"]
    assert [one["num_steps"] for one in decoded] == [1, 2]
    assert [one["others_prefill_tokens"] for one in decoded] == [40, 0]
    assert story[-1].at_ms == result.requests.finish_ms[0]


def test_a_story_tells_of_preemptions_and_waits_for_another_seat() -> None:
    # Eight usable blocks: both fit at first, and outgrow them together.
    result = run([(0.0, 48, 40), (0.0, 48, 40)], num_gpu_blocks=9, max_num_batched_tokens=200)
    assert result.num_preemptions > 0
    (index, *_) = np.flatnonzero(result.requests.preemptions).tolist()
    story = Stories(result).of(index)
    kinds = [one.kind for one in story]
    assert kinds.count("preempted") == result.requests.preemptions[index]
    assert kinds.count("waited") == 1 + kinds.count("preempted")
    lost = story[kinds.index("preempted")]
    again = story[kinds.index("waited", kinds.index("preempted"))]
    assert again.at_ms == lost.at_ms
    tokens_made = sum(one.facts["num_steps"] for one in story if one.kind == "decoded")
    tokens_made += kinds.count("waited")  # each prompt computed yields one, too
    assert tokens_made == result.requests.output_tokens[index]


def test_a_story_needs_the_trail() -> None:
    with pytest.raises(ValueError, match="trail"):
        Stories(run(THREE, trail=False))


@pytest.mark.parametrize(
    ("of_ms", "words"), [(0.5, "0.5 ms"), (42.4, "42 ms"), (4123, "4.1 s"), (250_000, "250 s")]
)
def test_times_for_people(of_ms: float, words: str) -> None:
    assert duration(of_ms) == words


def test_tokens_for_people() -> None:
    assert (tokens(6144), tokens(38_120)) == ("6,144", "38k")
