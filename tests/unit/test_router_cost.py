"""The cost function, term by term, and the choice it leads to."""

from collections import Counter
from dataclasses import asdict, replace
from math import exp, tanh

import pytest
from router_support import BLOCK, Points, card, make_router, request, store

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.errors import ConfigError
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.classes import PolicyClass
from dynosim.router.cost import WorkerOption, draw, pick
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import CostSpec
from dynosim.router.kv_router import KvRouter


def options(router: KvRouter, *args: object, **kwargs: object) -> list[WorkerOption]:
    made = request("asked", *args, **kwargs)  # type: ignore[arg-type]
    return router.choice.options(made, router.table.all_mask, 0.0)


def test_an_idle_worker_costs_the_prompt_twice_prefill_and_blocks() -> None:
    assert [o.cost for o in options(make_router(2), range(4))] == [8.0, 8.0]


def test_cached_blocks_save_prefill_but_are_held_all_the_same() -> None:
    router = make_router(2)
    store(router, 1, [0, 1, 2])
    assert [(o.cost, o.cached_tokens) for o in options(router, range(4))] == [(8, 0), (5, 48)]


def test_a_partial_block_counts_as_prefill_and_not_as_a_block() -> None:
    (option,) = options(make_router(1), range(4), input_tokens=4 * BLOCK + 8)
    assert option.cost == 4.5 + 4


def test_requests_in_hand_count_their_prefill_until_the_first_token_and_their_blocks() -> None:
    router = make_router(1)
    router.submit(request("first", [7, 8]), 0.0)
    assert options(router, range(4))[0].cost == (2 + 4) + (2 + 4)
    router.first_token("first", 1.0)
    assert options(router, range(4))[0].cost == 4 + (2 + 4)
    router.free("first", 2.0)
    assert options(router, range(4))[0].cost == 8


def test_blocks_that_are_active_already_are_not_counted_again() -> None:
    router = make_router(1)
    router.submit(request("first", [0, 1, 9]), 0.0)
    router.first_token("first", 1.0)
    assert options(router, range(4))[0].decode_blocks == 3 + 4 - 2


def test_credit_weights_and_scale() -> None:
    router = make_router(1, overlap_score_credit=0.5, prefill_load_scale=3.0)
    store(router, 0, [0, 1])
    assert options(router, range(4))[0].cost == 3 * (4 - 0.5 * 2) + 4


def test_a_credit_above_one_cannot_make_prefill_negative() -> None:
    router = make_router(1, overlap_score_credit=2.0)
    store(router, 0, [0, 1, 2])
    assert options(router, range(4))[0].cost == 0 + 4
    decision = router.submit(request("r", range(4)), 0.0)
    assert decision is not None and decision.cost == 0 + 4


@pytest.mark.parametrize(("credit", "worker_id"), [(1.0, 1), (2.0, 1), (3.0, 0), (4.0, 0)])
def test_a_credit_above_one_draws_requests_to_caches_past_load(
    credit: float, worker_id: int
) -> None:
    """Worker 0 holds 4 of 8 blocks and has 6 of prefill; the other has none of either."""
    router = make_router(2, overlap_score_credit=credit)
    store(router, 0, range(4))
    busy = request("busy", range(50, 53), input_tokens=6 * BLOCK)
    router.submit(replace(busy, constraints=Constraints(pinned_worker=0)), 0.0)
    costs = [6 + 8 - min(4 * credit, 14) + 3 + 8, 8 + 8]
    assert [option.cost for option in options(router, range(8))] == costs
    decision = router.submit(request("r", range(8)), 0.0)
    assert decision is not None and decision.worker_id == worker_id
    assert decision.cost == costs[worker_id]


def test_credit_decays_on_workers_with_more_prefill_than_the_least_loaded() -> None:
    router = make_router(2, overlap_score_credit_decay=2.0)
    store(router, 0, [0, 1])
    pinned = Constraints(pinned_worker=0)
    router.submit(request("busy", range(50, 58), constraints=pinned), 0.0)
    surplus = 8  # blocks of prefill that worker 1 does not have
    credit = 1 / (1 + 2.0 * surplus / 4)
    assert options(router, range(4))[0].cost == pytest.approx((8 + 4 - credit * 2) + (8 + 4))


def test_credit_decays_by_the_surplus_and_not_by_all_prefill_in_hand() -> None:
    """With every worker loaded: 8 and 3 blocks of prefill, so 5 too many for the first."""
    router = make_router(2, overlap_score_credit_decay=2.0)
    for worker_id, count in ((0, 8), (1, 3)):
        store(router, worker_id, [0, 1])
        pinned = Constraints(pinned_worker=worker_id)
        blocks = range(50 + 10 * worker_id, 50 + 10 * worker_id + count)
        router.submit(request(worker_id, blocks, constraints=pinned), 0.0)
    most, least = options(router, range(4))
    assert most.cost == pytest.approx((8 + 4 - 2 / (1 + 2.0 * 5 / 4)) + (8 + 4))
    assert least.cost == (3 + 4 - 2) + (3 + 4)


def test_credit_decays_by_the_least_loaded_of_those_that_may_serve() -> None:
    router = make_router(3, overlap_score_credit_decay=1.0)
    store(router, 0, [0])
    for worker_id, count in ((0, 4), (1, 2)):
        pinned = Constraints(pinned_worker=worker_id)
        blocks = range(50 + 10 * worker_id, 50 + 10 * worker_id + count)
        router.submit(request(worker_id, blocks, constraints=pinned), 0.0)
    made = request("asked", range(4))
    costs = [router.choice.options(made, mask, 0.0)[0].cost for mask in (0b001, 0b011, 0b111)]
    prefill, blocks = 4 + 4, 4 + 4
    assert costs == [
        pytest.approx(prefill - 1 / (1 + surplus / 4) + blocks) for surplus in (0, 2, 4)
    ]


def test_decay_counts_the_prompt_in_blocks_rounded_up() -> None:
    router = make_router(2, overlap_score_credit_decay=1.0)
    store(router, 0, [0])
    router.submit(request("busy", range(50, 53), constraints=Constraints(pinned_worker=0)), 0.0)
    first, _ = options(router, range(2), input_tokens=2 * BLOCK + 1)
    assert first.cost == pytest.approx((3 + 2 + 1 / BLOCK) - 1 / (1 + 3 / 3) + (3 + 2))


def test_requests_in_hand_have_a_weight_of_their_own() -> None:
    router = make_router(1, active_request_weight=2.5)
    router.submit(request("first", [7]), 0.0)
    router.first_token("first", 1.0)
    assert options(router, range(4))[0].cost == 4 + (1 + 4) + 2.5


def test_without_tracking_prefill_neither_load_nor_overlap_counts() -> None:
    router = make_router(1, track_prefill_tokens=False)
    store(router, 0, [0, 1])
    router.submit(request("first", [7]), 0.0)
    assert options(router, range(4))[0].cost == 1 + 4


def test_without_reuse_equal_prompts_count_twice() -> None:
    router = make_router(1, assume_kv_reuse=False)
    router.submit(request("first", range(4)), 0.0)
    router.first_token("first", 0.0)
    assert options(router, range(4))[0].cost == 4 + (4 + 4)


def test_slower_tiers_count_by_their_weights_behind_the_device() -> None:
    router = make_router(2, index=TieredIndex(CompressedRadixIndex()))
    chain = sequence_hashes(range(4))
    router.apply_events(0, 0, [Stored(None, chain[:1], [0])])
    router.apply_events(0, 0, [Stored(chain[0], chain[1:3], [1, 2], Tier.HOST)])
    router.apply_events(0, 0, [Stored(chain[2], chain[3:], [3], Tier.DISK)])
    ours, other = options(router, range(4))
    assert ours.overlap_blocks == 1 + 0.75 * 2 + 0.25
    assert ours.cost == (4 - ours.overlap_blocks) + 4
    assert other.cost == 8
    router.apply_events(0, 0, [Removed([chain[1]], Tier.HOST)])
    assert options(router, range(4))[0].overlap_blocks == 1


@pytest.mark.parametrize(("host", "chosen", "cached_tokens"), [(0.75, 1, 36), (0.25, 0, 16)])
def test_the_weight_of_the_host_decides_between_it_and_a_device(
    host: float, chosen: int, cached_tokens: int
) -> None:
    """Worker 0 holds one block of four on its device, worker 1 three of them on its host."""
    router = make_router(2, index=TieredIndex(CompressedRadixIndex()), host_cache_hit_weight=host)
    chain = sequence_hashes(range(4))
    router.apply_events(0, 0, [Stored(None, chain[:1], [0])])
    router.apply_events(1, 0, [Stored(None, chain[:3], [0, 1, 2], Tier.HOST)])
    decision = router.submit(request("r", range(4)), 0.0)
    assert decision is not None
    assert (decision.worker_id, decision.cached_tokens) == (chosen, cached_tokens)
    assert decision.cost == (4 - decision.overlap_blocks) + 4


def test_host_blocks_make_a_prompt_short_for_its_class() -> None:
    short = PolicyClass("short", max_uncached_tokens=17)  # never waits
    rest = PolicyClass("rest", prefill_busy_threshold=0)
    index = TieredIndex(CompressedRadixIndex())
    router = make_router(1, index=index, classes=(short, rest), host_cache_hit_weight=0.5)
    assert router.submit(request("busy", [9]), 0.0) is not None
    chain = sequence_hashes(range(4))
    router.apply_events(0, 0, [Stored(None, chain[:2], [0, 1])])
    assert router.submit(request("waits", range(4)), 0.0) is None
    router.apply_events(0, 0, [Stored(chain[1], chain[2:], [2, 3], Tier.HOST)])
    assert router.submit(request("goes", range(4)), 0.0) is not None


def test_a_preferred_taint_multiplies_the_cost() -> None:
    router = make_router(1)
    router.add_worker(card(1, taints=frozenset({"fast"})))
    wish = Constraints(preferred_taints={"fast": 0.85})
    plain, fast = options(router, range(4), constraints=wish)
    assert fast.cost == pytest.approx(plain.cost * exp(-tanh(0.85)))
    assert router.submit(request("r", constraints=wish), 0.0).worker_id == 1  # type: ignore[union-attr]


def test_the_cheapest_worker_is_chosen_and_told_why() -> None:
    router = make_router(3)
    store(router, 2, [1, 2])
    decision = router.submit(request("r", [1, 2, 3]), 5.0)
    assert decision is not None
    assert (decision.worker_id, decision.dp_rank) == (2, 0)
    assert (decision.cost, decision.overlap_blocks, decision.cached_tokens) == (4, 2, 32)


@pytest.mark.parametrize("credit", [1.0, 1.5])  # found by the shortcut, and by pricing each option
def test_the_cost_that_is_told_counts_a_rest_of_the_prompt_by_its_tokens(credit: float) -> None:
    router = make_router(2, overlap_score_credit=credit, prefill_load_scale=2.0)
    store(router, 1, [1, 2])
    decision = router.submit(request("r", [1, 2, 3, 4], input_tokens=4 * BLOCK + 4), 0.0)
    assert decision is not None
    assert (decision.worker_id, decision.cost) == (1, 2 * (4.25 - 2 * credit) + 4)


def test_equal_costs_are_drawn_evenly_and_the_same_with_the_same_seed() -> None:
    def choices(seed: int) -> list[int]:
        router = make_router(4, seed=seed)
        chosen = []
        for number in range(400):
            decision = router.submit(request(number, [number]), 0.0)
            assert decision is not None
            chosen.append(decision.worker_id)
            router.free(number, 0.0)
        return chosen

    assert choices(1) == choices(1) != choices(2)
    assert all(70 <= count <= 130 for count in Counter(choices(3)).values())


def test_a_temperature_prefers_cheap_workers_without_excluding_others() -> None:
    router = make_router(2, temperature=1.0)
    store(router, 1, [0, 1])
    chosen = Counter()  # type: Counter[int]
    for number in range(3000):
        decision = router.submit(request(number, range(4)), 0.0)
        assert decision is not None
        chosen[decision.worker_id] += 1
        router.free(number, 0.0)
    assert chosen[1] / 3000 == pytest.approx(1 / (1 + exp(-1)), abs=0.03)


def priced(*costs: float) -> list[WorkerOption]:
    return [WorkerOption(slot, 0, slot, cost, 0.0, 0, 0, 0, 0) for slot, cost in enumerate(costs)]


@pytest.mark.parametrize(("point", "slot"), [(0.0, 1), (0.33, 1), (0.34, 2), (0.67, 4), (0.999, 4)])
def test_the_lot_falls_on_equal_ones_by_equal_shares(point: float, slot: int) -> None:
    options = priced(5.0, 2.0, 2.0, 9.0, 2.0)
    assert pick(options, 0.0, Points(point)).slot == slot


def test_a_single_cheapest_one_costs_no_random_number() -> None:
    assert pick(priced(5.0, 2.0, 3.0), 0.0, Points()).slot == 1
    assert draw(["only"], Points()) == "only"


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_a_temperature_gives_shares_of_a_softmax_over_scaled_costs(temperature: float) -> None:
    """Costs 30, 10 and 20 are 1, 0 and 1/2 of the way from the cheapest to the dearest."""
    options = priced(30.0, 10.0, 20.0)
    weights = [exp(-scaled / temperature) for scaled in (1.0, 0.0, 0.5)]
    ends = [sum(weights[: i + 1]) / sum(weights) for i in range(3)]
    for slot, end in enumerate(ends):
        assert pick(options, temperature, Points(end - 1e-9)).slot == slot
    for slot, end in enumerate(ends[:-1]):
        assert pick(options, temperature, Points(end + 1e-9)).slot == slot + 1


def test_with_a_temperature_equal_costs_are_drawn_evenly() -> None:
    options = priced(3.0, 3.0)
    assert [pick(options, 0.5, Points(point)).slot for point in (0.0, 0.499, 0.5)] == [0, 0, 1]


def test_a_number_at_the_very_end_takes_the_last_option() -> None:
    assert pick(priced(1.0, 2.0), 1.0, Points(1.0)).slot == 1  # of rounding


def test_a_request_can_bring_its_own_weights() -> None:
    router = make_router(2, overlap_score_credit=0.0)
    store(router, 1, [0, 1])
    own = CostSpec(overlap_score_credit=1.0)
    for number in range(20):
        decision = router.submit(request(number, [0, 1, number + 50], overrides=own), 0.0)
        assert decision is not None and decision.worker_id == 1
        router.free(number, 0.0)


def test_a_store_of_all_saves_what_comes_behind_the_blocks_of_ones_own() -> None:
    router = make_router(3, shared_cache_multiplier=0.5)
    store(router, 0, [0])
    store(router, 1, [0, 1, 2, 3])

    def costs(*ranges: tuple[int, int]) -> list[float]:
        made = replace(request("asked", range(8)), shared_ranges=ranges)
        return [one.cost for one in router.choice.options(made, router.table.all_mask, 0.0)]

    assert costs() == [16 - 1, 16 - 4, 16]
    assert costs((0, 8)) == [16 - 1 - 7 / 2, 16 - 4 - 4 / 2, 16 - 8 / 2]
    # A gap ends it; what lies behind the gap is of use to who has come that far.
    assert costs((0, 2), (4, 8)) == [16 - 1 - 1 / 2, 16 - 4 - 4 / 2, 16 - 2 / 2]
    assert costs((1, 4)) == [16 - 1 - 3 / 2, 16 - 4, 16]


def test_what_a_candidate_has_in_tiers_of_its_own_it_needs_not_load_from_the_store() -> None:
    """One block on its device, two on its host, five to load; whoever looks at it, and how."""
    router = make_router(2, shared_cache_multiplier=0.25, index=TieredIndex(CompressedRadixIndex()))
    store(router, 0, [0])
    names = sequence_hashes([0, 1, 2])
    router.apply_events(0, 0, [Stored(names[0], names[1:], [1, 2], Tier.HOST)])
    made = request("asked", range(8), shared_ranges=((0, 8),))
    costs = [one.cost for one in router.choice.options(made, router.table.all_mask, 0.0)]
    assert costs == [16 - 1 - 2 * 0.75 - 5 / 4, 16 - 8 / 4]
    placed = router.submit(made, 0.0)
    assert placed is not None and (placed.slot, placed.cost) == (0, costs[0])


@pytest.mark.parametrize(("multiplier", "slot"), [(0.0, 0), (0.125, 0), (0.5, 1), (1.0, 1)])
def test_a_store_of_all_lets_an_idle_worker_win_over_a_busy_one(
    multiplier: float, slot: int
) -> None:
    """Three blocks in hand cost 6; what the busy one alone holds, 8 blocks of which all others
    would have to load."""
    router = make_router(2, shared_cache_multiplier=multiplier)
    store(router, 0, range(8))
    router.submit(request("first", range(100, 103), constraints=Constraints(pinned_worker=0)), 0.0)
    placed = router.submit(request("asked", range(8), shared_ranges=((0, 8),)), 0.0)
    assert placed is not None and placed.slot == slot
    assert placed.overlap_blocks == (8 if slot == 0 else 0)  # what it has itself


NUMBERS = [name for name, value in asdict(CostSpec()).items() if not isinstance(value, bool)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_weight_is_a_finite_number_from_zero_on(name: str) -> None:
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"router\.{name}.*>= 0, got {value}"):
            CostSpec(**{name: value})
    assert getattr(CostSpec(**{name: 0.0}), name) == 0.0


def test_defaults_are_those_of_the_field() -> None:
    assert asdict(CostSpec()) == {
        "overlap_score_credit": 1.0,
        "overlap_score_credit_decay": 0.0,
        "prefill_load_scale": 1.0,
        "host_cache_hit_weight": 0.75,
        "disk_cache_hit_weight": 0.25,
        "active_request_weight": 0.0,
        "temperature": 0.0,
        "track_prefill_tokens": True,
        "assume_kv_reuse": True,
        "shared_cache_multiplier": 0.0,
    }
