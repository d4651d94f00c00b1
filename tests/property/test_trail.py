"""A run that keeps its trail is the same run, and the trail is all of what it computed."""

import random
from dataclasses import fields, replace

import numpy as np
import pytest
from clusters import equal_workers
from strategies import random_spec, random_trace

from dynosim.cluster import RunOptions, simulate
from dynosim.records import RequestStatus, RunResult
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.router.witness import ChoiceWitness
from dynosim.timing.formulas import LinearModel


def runs(seed: int) -> tuple[RunResult, RunResult, ChoiceWitness]:
    """One without and one with all that can be kept."""
    rng = random.Random(seed)
    trace = random_trace(rng)
    spec = random_spec(rng, trace)
    spec = replace(spec, async_scheduling=rng.random() < 0.5)
    times = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.05, per_decode_ms=0.1, per_context_token_ms=0.0005
    )
    times.ingress_ms, times.egress_ms = rng.choice([(0.0, 0.0), (2.0, 1.0)])
    mode = rng.choice(["kv", "round-robin", "least-loaded"])
    witness = ChoiceWitness(range(len(trace)))
    routing = RoutingSpec(RouterSpec(spec.block_size, mode=mode))
    plain, watched = (
        simulate(trace, equal_workers(spec, times, num_workers=3, routing=one), options)
        for one, options in (
            (routing, RunOptions()),
            (replace(routing, witness=witness), RunOptions(records_trail=True)),
        )
    )
    return plain, watched, witness


@pytest.mark.parametrize("seed", range(24))
def test_keeping_the_trail_changes_nothing(seed: int) -> None:
    plain, watched, _ = runs(seed)
    for log in ("requests", "steps"):
        for field in fields(getattr(plain, log)):
            before, now = (getattr(getattr(one, log), field.name) for one in (plain, watched))
            if log == "steps" and len(before) != len(now):
                break  # an engine that was asked in a run notes its steps in two rows
            if isinstance(before, np.ndarray):
                np.testing.assert_allclose(now, before, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("seed", range(24))
def test_the_chunks_are_what_the_steps_computed(seed: int) -> None:
    _, result, _ = runs(seed)
    assert result.trail is not None
    chunks, seats, log, steps = (
        result.trail.chunks,
        result.trail.seats,
        result.requests,
        result.steps,
    )
    num_workers = len(result.workers)
    by_chunk = np.bincount(chunks.worker_id, chunks.num_tokens, num_workers)
    by_step = np.bincount(steps.worker_id, steps.prefill_tokens, num_workers)
    assert (by_chunk <= by_step).all()  # steps count single tokens after a preemption, too
    if result.num_preemptions == 0:
        assert (by_chunk == by_step).all()
    completed = log.status == RequestStatus.COMPLETED
    calm = completed & (log.preemptions == 0)
    computed = np.bincount(chunks.request, chunks.num_tokens, len(log.status))
    assert (computed[calm] == (log.input_tokens - log.cached_tokens)[calm]).all()
    taken = np.bincount(seats.request[seats.is_taken], minlength=len(log.status))
    lost = np.bincount(seats.request[~seats.is_taken], minlength=len(log.status))
    assert (lost == log.preemptions).all()
    # Who lost the seat with the last token under way needs no other.
    assert ((taken - lost)[completed] <= 1).all() and (taken[completed] >= 1).all()
    assert (seats.at_ms[seats.is_taken] >= log.scheduled_ms[seats.request[seats.is_taken]]).all()


@pytest.mark.parametrize("seed", range(24))
def test_what_was_weighed_holds_the_choice(seed: int) -> None:
    _, result, witness = runs(seed)
    for choice in witness.choices:
        chosen = next(option for option in choice.options if option.slot == choice.slot)
        assert chosen.worker_id == result.requests.worker_id[choice.request_id]
        assert chosen.cost == min(option.cost for option in choice.options)
        assert choice.now_ms >= result.requests.arrival_ms[choice.request_id] - 1e-9
