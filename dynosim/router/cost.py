"""What it would cost to serve a request on each candidate, in units of KV blocks.

    decay   = 1 / (1 + credit_decay * (prefill tokens above the least loaded) / bs / prompt blocks)
    credit  = overlap_score_credit * decay * device + host_weight * host + disk_weight * disk
              + shared_multiplier * shared
    prefill = max((active prefill tokens + prompt tokens) / bs - credit, 0)
    cost    = prefill_load_scale * prefill + active blocks afterwards + request_weight * requests

`device`, `host` and `disk` are leading blocks of the prompt that the candidate holds in that tier
(beyond the faster ones; a remote store of its own counts as a disk), `shared` those that come next
in a store that all candidates share, `bs` is the block size; active blocks are
distinct blocks of requests in hand, this one's included. Preferred taints multiply the cost. The
lowest cost wins. Source of the formula: NVIDIA Dynamo 1.6, KV router.
"""

from collections.abc import Mapping, Sequence
from math import exp
from random import Random
from typing import NamedTuple, TypeVar

from dynosim.indexer.answers import Overlaps, members
from dynosim.indexer.tiers import TierOverlaps
from dynosim.router.knobs import CostSpec
from dynosim.router.load import ActiveLoad
from dynosim.router.request import RoutingRequest
from dynosim.router.shared_cache import blocks_beyond
from dynosim.router.workers import WorkerTable
from dynosim.workers.ids import DpRank, Slot, WorkerId

T = TypeVar("T")


class WorkerOption(NamedTuple):
    """A candidate as a placement policy sees it."""

    worker_id: WorkerId
    dp_rank: DpRank
    slot: Slot
    cost: float
    overlap_blocks: float  # cached leading blocks, slower tiers by their weights
    cached_tokens: int
    prefill_tokens: int  # to compute before this request's first token, itself included
    decode_blocks: int  # active blocks with this request
    num_requests: int  # in flight, without this one


def worker_options(
    request: RoutingRequest,
    eligible: int,
    now_ms: float,
    *,
    table: WorkerTable,
    load: ActiveLoad,
    tiers: TierOverlaps,
    cost: CostSpec,
    preference: Mapping[Slot, float],
) -> list[WorkerOption]:
    """Every eligible candidate with its cost, in slot order."""
    block_size = table.block_size
    device = tiers.device.by_worker()
    slower_tiers = [
        (found.by_worker(), weight)
        for found, weight in zip(tiers[1:], cost.slower_weights, strict=True)
        if found.classes
    ]
    shared = Overlaps(load.active.shared_prefix(request.keys if cost.assume_kv_reuse else ()))
    active = shared.by_worker()
    slots = list(members(eligible))
    queued = {slot: load.prefill_tokens(slot, now_ms) for slot in slots}
    least_queued = min(queued.values(), default=0)
    num_blocks = -(-request.input_tokens // block_size)
    options = []
    for slot in slots:
        on_device = device.get(slot, 0)
        slower = sum([weight * found.get(slot, 0) for found, weight in slower_tiers], 0.0)
        overlap_blocks = on_device + slower
        cached_tokens = round(overlap_blocks * block_size)
        credit = cost.overlap_score_credit
        if cost.overlap_score_credit_decay and cost.track_prefill_tokens:
            surplus_blocks = (queued[slot] - least_queued) / block_size
            credit /= 1 + cost.overlap_score_credit_decay * surplus_blocks / num_blocks
        in_store = 0.0
        if cost.shared_cache_multiplier:
            depth = on_device + sum([found.get(slot, 0) for found, _ in slower_tiers])
            in_store = cost.shared_cache_multiplier * blocks_beyond(request.shared_ranges, depth)
        prefill_tokens = 0
        if cost.track_prefill_tokens:
            prefill_tokens = queued[slot] + max(request.input_tokens, cached_tokens)
        computed = prefill_tokens / block_size - credit * on_device - slower - in_store
        prefill_blocks = max(computed, 0.0)
        decode_blocks = load.blocks(slot) + request.num_blocks - active.get(slot, 0)
        num_requests = load.num_requests[slot]
        price = cost.prefill_load_scale * prefill_blocks + decode_blocks
        price += cost.active_request_weight * num_requests
        price *= preference.get(slot, 1.0)
        left_tokens = prefill_tokens - cached_tokens if cost.track_prefill_tokens else 0
        who = table.candidate(slot)
        options.append(
            WorkerOption(
                who.worker_id, who.dp_rank, slot, price, overlap_blocks, cached_tokens,
                max(left_tokens, 0), decode_blocks, num_requests,
            )
        )  # fmt: skip
    return options


def pick(options: list[WorkerOption], temperature: float, generator: Random) -> WorkerOption:
    """The cheapest option, equal costs by lot; with a temperature, cheaper ones more often.

    Then the chances are a softmax over negative costs, scaled to 0..1 between the cheapest and the
    dearest: p ~ exp(-scaled cost / temperature).
    """
    lowest = min(option.cost for option in options)
    if temperature == 0:
        return draw([option for option in options if option.cost == lowest], generator)
    spread = max(option.cost for option in options) - lowest
    if spread == 0:
        return draw(options, generator)
    weights = [exp(-(option.cost - lowest) / spread / temperature) for option in options]
    point = generator.random() * sum(weights)
    for option, weight in zip(options, weights, strict=True):
        point -= weight
        if point < 0:
            return option
    return options[-1]


def draw(equals: Sequence[T], generator: Random) -> T:
    """One of the list, all with equal chance."""
    return equals[draw_place(len(equals), generator)]


def draw_place(count: int, generator: Random) -> int:
    """One of so many places, all with equal chance; a single one costs no random number."""
    return 0 if count == 1 else int(generator.random() * count)
