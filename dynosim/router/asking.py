"""Questions to the router in tokens, as the field asks them."""

from collections.abc import Hashable, Sequence

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.router.cost import WorkerOption
from dynosim.router.inputs import Arrive, AskBest, E, Input
from dynosim.router.knobs import CostSpec
from dynosim.router.refusals import InvalidRequestError
from dynosim.router.request import RoutingRequest


def request_of(
    token_ids: Sequence[int],
    block_size: int,
    request_id: Hashable = None,
    overrides: CostSpec | None = None,
) -> RoutingRequest:
    """The request whose prompt these tokens are. Raises: InvalidRequestError if there are none."""
    if not len(token_ids):
        raise InvalidRequestError("the prompt is empty")
    local = local_hashes(token_ids, block_size)
    keys = sequence_hashes(local)
    return RoutingRequest(request_id, len(token_ids), len(local), local, keys, overrides=overrides)


def potential_load(option: WorkerOption) -> dict[str, int]:
    """What a candidate would have in flight, under the field's names."""
    return {
        "worker_id": option.worker_id,
        "dp_rank": option.dp_rank,
        "potential_prefill_tokens": option.prefill_tokens,
        "potential_decode_blocks": option.decode_blocks,
    }


def asked_by(given: Input[E]) -> Hashable:
    """The request that an input asks about, if it names one."""
    if isinstance(given, Arrive):
        return given.request.request_id
    return given.request_id if isinstance(given, AskBest) else None
