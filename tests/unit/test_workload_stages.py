"""Load stages, pools of prompts, the chat template's tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.build.workload import build_trace, stage_windows
from dynosim.config.workload import WorkloadConfig
from dynosim.errors import ConfigError
from dynosim.records import Trace
from dynosim.workload.extents import prefix_extents
from dynosim.workload.pool import PromptPool, pool_trace
from dynosim.workload.stages import Stage, draw_stages, stage_windows_s
from dynosim.workload.streams import stream
from dynosim.workload.synthetic import synthesize
from dynosim.workload.template import with_template

POOL = {
    "system_prompts": 3,
    "users_per_prompt": 2,
    "system_tokens": 100,
    "question_tokens": 50,
    "output_tokens": 9,
}


def built(**keys: Any) -> Trace:
    return build_trace(WorkloadConfig.of(keys), seed=1, resolve=Path)


# ---- stages ----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["poisson", "gamma", "constant"])
def test_a_stage_has_the_requests_that_its_rate_makes_of_its_time(process: str) -> None:
    stages = [Stage(2.5, 60), Stage(10, 30, start_s=100), Stage(0.01, 5)]
    arrival_ms, numbers = draw_stages(process, stages, stream(0, "arrivals"), burstiness=0.5)
    assert np.bincount(numbers).tolist() == [150, 300, 1]
    assert (np.diff(arrival_ms) >= 0).all()
    for place, (start_s, end_s) in enumerate([(0, 60), (100, 130), (130, 135)]):
        mine = arrival_ms[numbers == place]
        assert start_s * 1e3 <= mine.min() and mine.max() < end_s * 1e3


def test_poisson_gaps_of_a_stage_vary_as_much_as_they_are_long() -> None:
    arrival_ms, _ = draw_stages("poisson", [Stage(50, 400)], stream(3, "arrivals"))
    gaps_ms = np.diff(arrival_ms)
    assert gaps_ms.mean() == pytest.approx(20, rel=0.01)
    assert gaps_ms.std() == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(1, 10), Stage(1, 10, start_s=5)], r"stages\[1\]\.start_s: starts at 5 s, but st"),
        ([Stage(0, 10)], r"stages\[0\]\.rate_rps: expected a number > 0"),
        ([Stage(1, float("inf"))], r"stages\[0\]\.duration_s: expected a number > 0"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stage_windows_s(stages)


def test_turns_of_sessions_count_for_the_rate_of_a_stage() -> None:
    spec = {"isl": 100, "osl": 10, "turns": 4}
    trace = synthesize(spec, 0, stages=[Stage(20, 50), Stage(40, 50)])
    assert trace.stages is not None
    assert np.bincount(trace.stages).tolist() == [1000, 2000]


def test_a_scaled_load_has_its_stages_scaled() -> None:
    keys = {"pool": POOL, "stages": [{"rate_rps": 2, "duration_s": 60}]}
    config = WorkloadConfig.of({**keys, "arrival_scale": 4.0})
    assert stage_windows(config) == [(0.0, 15.0, 8.0)]
    assert build_trace(config, seed=0, resolve=Path).arrival_ms.max() < 15_000


# ---- pools -----------------------------------------------------------------------------------


def test_a_pool_goes_round_and_its_prompts_repeat_exactly() -> None:
    trace = built(pool=POOL, template_tokens=20, stages=[{"rate_rps": 6, "duration_s": 3}])
    assert set(trace.input_tokens.tolist()) == {170}
    ids = trace.hash_ids.reshape(18, -1)
    assert (ids[:6] == ids[6:12]).all()
    assert len({tuple(row) for row in ids.tolist()}) == 6


@pytest.mark.parametrize("block_size", [16, 32, 48])
def test_prompts_of_a_pool_share_the_blocks_whose_tokens_are_all_shared(block_size: int) -> None:
    """Template 40, system 100, question 50: blocks of all, of a system prompt, of one prompt."""
    pool = PromptPool(**POOL, template_tokens=40)
    trace = pool_trace(pool, np.arange(6.0), seed=0)
    extents = prefix_extents(trace, block_size, single_blocks=True)
    paths = np.split(extents.path, extents.path_offsets[1:-1])
    assert common(paths[0], paths[1]) == 140 // block_size
    assert common(paths[0], paths[2]) == 40 // block_size
    assert len(paths[0]) == 190 // block_size


def test_a_random_order_has_the_same_prompts_and_another_order() -> None:
    keys = {"stages": [{"rate_rps": 100, "duration_s": 2}]}
    in_turn, drawn = (built(pool={**POOL, "order": o}, **keys) for o in ("round_robin", "random"))
    rows = [t.hash_ids.reshape(200, -1).tolist() for t in (in_turn, drawn)]
    assert len({tuple(row) for row in rows[0]}) == len({tuple(row) for row in rows[1]}) == 6
    assert rows[0] != rows[1]


def test_a_closed_loop_of_a_pool_says_how_many_requests_there_are() -> None:
    trace = built(pool={**POOL, "requests": 7}, concurrency=2)
    assert len(trace) == 7 and trace.stages is None


# ---- template --------------------------------------------------------------------------------


@pytest.mark.parametrize("template_tokens", [1, 15, 16, 27, 512, 600])
def test_a_template_is_in_front_of_every_prompt_and_cached_once(template_tokens: int) -> None:
    spec = {"requests": 30, "isl": 700, "osl": 5, "rate_rps": 1, "shared_prefix_tokens": 512,
            "prefix_groups": 2}  # fmt: skip
    plain = synthesize(spec, 0)
    trace = with_template(plain, template_tokens)
    assert (trace.input_tokens == plain.input_tokens + template_tokens).all()
    before, after = (blocks_by_request(one) for one in (plain, trace))
    for other in range(1, 30):
        shared = 16 * common(before[0], before[other])
        found = 16 * common(after[0], after[other])
        assert template_tokens + shared - 31 < found <= template_tokens + shared


def test_a_template_does_not_part_the_turns_of_a_session() -> None:
    spec = {"sessions": 5, "turns": 3, "isl": 100, "turn_isl": 37, "osl": 20, "rate_rps": 1}
    trace = with_template(synthesize(spec, 0), 27)
    blocks = blocks_by_request(trace)
    assert trace.previous_turn is not None
    for row, previous in enumerate(trace.previous_turn.tolist()):
        if previous >= 0:
            full = int(trace.input_tokens[previous]) // 16
            assert common(blocks[row], blocks[previous]) >= full - 1


def test_without_template_tokens_nothing_changes() -> None:
    plain = synthesize({"requests": 3, "isl": 70, "osl": 5, "rate_rps": 1}, 0)
    assert with_template(plain, 0) is plain
    bare = replace(plain, hash_ids=plain.hash_ids[:0], hash_offsets=np.zeros(4, np.int64))
    assert with_template(bare, 9).input_tokens.tolist() == [79, 79, 79]


def blocks_by_request(trace: Trace) -> list[np.ndarray]:
    extents = prefix_extents(trace, 16, single_blocks=True)
    return np.split(extents.path, extents.path_offsets[1:-1])


def common(one: np.ndarray, other: np.ndarray) -> int:
    """Leading blocks that two prompts share."""
    size = min(len(one), len(other))
    differs = np.flatnonzero(one[:size] != other[:size])
    return int(differs[0]) if len(differs) else size
