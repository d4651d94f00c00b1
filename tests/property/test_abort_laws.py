"""Laws of the engine when clients leave at any time."""

import random
from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler

BLOCK = 4
MAX_LEN = 60


class RandomRun:
    """An engine under random arrivals, steps and aborts."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.is_async = rng.random() < 0.5
        self.spec = EngineSpec(
            num_gpu_blocks=1 + rng.choice([15, 16, 20, 60]),
            max_model_len=MAX_LEN,
            block_size=BLOCK,
            max_num_seqs=rng.choice([1, 3, 8]),
            max_num_batched_tokens=rng.choice([8, 16, 64]),
            enable_prefix_caching=rng.random() < 0.8,
            long_prefill_token_threshold=rng.choice([0, 0, 4]),
            policy=rng.choice(["fcfs", "priority"]),
            watermark=rng.choice([0.0, 0.1]),
            async_scheduling=self.is_async,
        )
        has_events = self.spec.enable_prefix_caching and rng.random() < 0.7
        self.engine = VllmScheduler(
            self.spec,
            [1] * 1000,
            keep_rows=rng.random() < 0.5,
            publish_events=has_events,
        )
        self.outstanding: deque[StepPlan] = deque()
        self.requests: list[Sequence] = []
        self.aborted: set[Sequence] = set()
        self.finished: list[Sequence] = []

    def add(self) -> None:
        rng = self.rng
        index = len(self.requests)
        prompt = rng.randint(1, MAX_LEN - 1)
        output = rng.randint(1, MAX_LEN - prompt)
        path: list[int] = []
        if self.spec.enable_prefix_caching:
            blocks = (prompt + rng.choice([0, output])) // BLOCK
            shared = rng.randint(0, blocks)
            tail = range(20 + 16 * index, 20 + 16 * index + blocks - shared)
            path = [*range(shared), *tail]
        sequence = Sequence(
            index, prompt, output, path, len(path), float(index), rng.randint(0, 2), str(index)
        )
        self.engine.add(sequence)
        self.requests.append(sequence)

    def plan(self) -> None:
        if len(self.outstanding) < 1 + self.is_async and self.engine.has_work:
            self.outstanding.append(self.engine.plan_step())

    def finish(self) -> None:
        if self.outstanding:
            self.finished += self.engine.finish_step(self.outstanding.popleft())

    def abort(self) -> None:
        if self.requests:
            sequence = self.rng.choice(self.requests)
            if sequence.state != FINISHED:
                self.aborted.add(sequence)
            self.engine.abort(sequence)

    def check(self) -> None:
        engine, pool = self.engine, self.engine.pool
        in_use = pool.blank_blocks + pool.idle_blocks
        assert (
            0 <= pool.blank_blocks and 0 <= pool.idle_blocks and in_use <= self.spec.usable_blocks
        )
        decodes = engine.decodes
        decoding = [s for s in engine.running if s.state == DECODING]
        assert decodes.count == len(decoding)
        assert decodes.context_tokens == sum(s.anchor + decodes.step + 1 for s in decoding)
        held = sum(-(-_computed(s, decodes.step) // BLOCK) for s in engine.running)
        assert self.spec.usable_blocks - in_use <= held  # shared blocks count once
        assert not any(s.state == FINISHED for s in engine.running)


def _computed(sequence: Sequence, step: int) -> int:
    return sequence.anchor + step if sequence.state == DECODING else sequence.num_computed


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_aborts_at_any_time_lose_no_block_and_no_other_request(seed: int) -> None:
    run = RandomRun(seed)
    actions = [run.add, run.plan, run.plan, run.plan, run.finish, run.finish, run.finish, run.abort]
    for _ in range(run.rng.randint(1, 250)):
        run.rng.choice(actions)()
        run.check()
    for _ in range(20_000):
        if not run.engine.has_work and not run.outstanding:
            break
        run.plan()
        run.finish()
    assert set(run.finished) == set(run.requests) - run.aborted
    assert len(run.finished) == len(set(run.finished))
    assert run.engine.pool.free_blocks == run.spec.usable_blocks
    assert run.engine.decodes.count == run.engine.decodes.context_tokens == 0
