"""The way of a request through prefill and decode workers, as a table.

It chooses no worker: a router of each pool does. It says whose turn it is, and what a driver has to
do next; twin and live layer ask the same object. A driver tells what has happened, in the order in
which it happened; what cannot happen in a phase is in no row.

Orders of the engines: vLLM and TensorRT-LLM compute the prompt and then look for room for its KV
(`prefill_first`), SGLang makes room before it computes (`decode_first`).
"""

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from dynosim.errors import InvariantError
from dynosim.router.topology import KvTransferPolicy

Order = Literal["prefill_first", "decode_first"]
FirstTokenFrom = Literal["decode", "prefill"]


class _Name(Enum):
    """A name whose hash is its identity: that of `Enum` is a call into Python at every look-up."""

    __hash__ = object.__hash__


class HandoffPhase(_Name):
    """Where a request is between its arrival and its end."""

    PREFILLING = "prefilling"  # waits for, or is computed by, a prefill worker
    PROMISING = "promising"  # waits until a decode worker has room; nothing is computed yet
    PROMISED = "promised"  # a decode worker has room; a prefill worker is at it
    HELD = "held"  # computed; the prefill worker holds its KV until a decode worker has room
    ORPHANED = "orphaned"  # as held, but the prefill worker is gone
    MOVING = "moving"  # its KV is on its way
    DECODING = "decoding"  # the decode worker has all it is going to get
    LOCAL = "local"  # no prefill worker has a part in it


class HandoffEvent(_Name):
    """What can happen to it."""

    PREFILLED = "prefilled"  # its prompt has been computed
    RESERVED = "reserved"  # blocks for its KV have been taken at the decode worker
    NOT_NEEDED = "not needed"  # the decode worker has all of its KV that it may reuse
    ARRIVED = "arrived"  # its KV is complete at the decode worker
    SOURCE_LOST = "source lost"  # its prefill worker is gone
    DESTINATION_LOST = "destination lost"  # its decode worker is gone
    LINK_LOST = "link lost"  # both are there, but nothing gets from one to the other


class Duty(Enum):
    """What the driver has to do then."""

    PLACE_PREFILL = "place prefill"
    PLACE_DECODE = "place decode"
    BEGIN_TRANSFER = "begin transfer"
    CANCEL_TRANSFER = "cancel transfer"
    RELEASE_SOURCE = "release source"  # the prefill worker may forget its KV
    REPORT_LOSS = "report loss"  # the decode worker waits for KV that will not come


_P, _E, _D = HandoffPhase, HandoffEvent, Duty
_START_AGAIN = (_P.PREFILLING, (_D.PLACE_PREFILL,))

TRANSITIONS: dict[HandoffPhase, dict[HandoffEvent, tuple[HandoffPhase, tuple[Duty, ...]]]] = {
    _P.PREFILLING: {
        _E.PREFILLED: (_P.HELD, (_D.PLACE_DECODE,)),
        _E.SOURCE_LOST: _START_AGAIN,
    },
    _P.PROMISING: {
        _E.RESERVED: (_P.PROMISED, (_D.PLACE_PREFILL,)),
        _E.NOT_NEEDED: (_P.DECODING, ()),
        _E.DESTINATION_LOST: (_P.PROMISING, (_D.PLACE_DECODE,)),
    },
    _P.PROMISED: {
        _E.PREFILLED: (_P.MOVING, (_D.BEGIN_TRANSFER,)),
        _E.SOURCE_LOST: (_P.PROMISED, (_D.PLACE_PREFILL,)),
        _E.DESTINATION_LOST: (_P.PREFILLING, ()),  # from here on as if it had come first
    },
    _P.HELD: {
        _E.RESERVED: (_P.MOVING, (_D.BEGIN_TRANSFER,)),
        _E.NOT_NEEDED: (_P.DECODING, (_D.RELEASE_SOURCE,)),
        _E.SOURCE_LOST: (_P.ORPHANED, ()),
        _E.DESTINATION_LOST: (_P.HELD, (_D.PLACE_DECODE,)),
    },
    _P.ORPHANED: {
        _E.RESERVED: (_P.DECODING, (_D.REPORT_LOSS,)),
        _E.NOT_NEEDED: (_P.DECODING, ()),
        _E.DESTINATION_LOST: _START_AGAIN,
    },
    _P.MOVING: {
        _E.ARRIVED: (_P.DECODING, (_D.RELEASE_SOURCE,)),
        _E.SOURCE_LOST: (_P.DECODING, (_D.CANCEL_TRANSFER, _D.REPORT_LOSS)),
        _E.DESTINATION_LOST: (_P.HELD, (_D.CANCEL_TRANSFER, _D.PLACE_DECODE)),
        _E.LINK_LOST: (_P.DECODING, (_D.CANCEL_TRANSFER, _D.REPORT_LOSS, _D.RELEASE_SOURCE)),
    },
    _P.DECODING: {_E.DESTINATION_LOST: _START_AGAIN},
    _P.LOCAL: {_E.DESTINATION_LOST: _START_AGAIN},
}


@dataclass(frozen=True, slots=True)
class ConditionalSpec:
    """When a decode worker computes a prompt itself; names and defaults are Dynamo 1.6's.

    `isl_bounding`: a prompt is short if fewer than `eff_isl_threshold` of its tokens are not cached
    at the decode worker, and they are less than `eff_isl_ratio_threshold` of it. `prefill_load`:
    every prefill worker has more than `prefill_busy_threshold` prompt tokens in flight.
    `isl_or_load`: either. None where the decode workers use more than `decode_busy_threshold` of
    their blocks.
    """

    policy: Literal["isl_bounding", "prefill_load", "isl_or_load"] = "isl_bounding"
    eff_isl_threshold: int = 2048
    eff_isl_ratio_threshold: float = 0.7
    prefill_busy_threshold: int | None = None
    decode_busy_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class PoolLoads:
    """What is known of both pools when a request arrives."""

    cached_tokens: int  # of the prompt, at the decode worker that has most of it
    least_prefill_tokens: float  # prompt tokens in flight at the least busy prefill worker
    least_decode_usage: float  # share of its blocks in use at the least used decode worker


@dataclass(frozen=True, slots=True)
class HandoffSpec:
    """How requests go from one pool to the other."""

    order: Order = "prefill_first"
    first_token: FirstTokenFrom = "decode"
    conditional: ConditionalSpec | None = None
    kv_transfer: KvTransferPolicy | None = None  # where the decode worker may be

    def is_local(self, input_tokens: int, loads: PoolLoads) -> bool:
        """Whether a decode worker computes a prompt of so many tokens itself."""
        rule = self.conditional
        if rule is None:
            return False
        limit = rule.decode_busy_threshold
        if limit is not None and loads.least_decode_usage > limit:
            return False
        missing = input_tokens - loads.cached_tokens
        is_short = missing < rule.eff_isl_threshold
        is_short = is_short and missing < rule.eff_isl_ratio_threshold * input_tokens
        busy = rule.prefill_busy_threshold
        is_busy = busy is not None and loads.least_prefill_tokens > busy
        if rule.policy == "isl_bounding":
            return is_short
        return is_busy or (rule.policy == "isl_or_load" and is_short)


class HandoffFlow:
    """Where every request in flight is, and what has to be done next."""

    def __init__(self, spec: HandoffSpec) -> None:
        self.spec = spec
        self._phases: dict[Hashable, HandoffPhase] = {}

    def __len__(self) -> int:
        """Requests in flight."""
        return len(self._phases)

    def phase_of(self, request_id: Hashable) -> HandoffPhase | None:
        """Where a request is; None: not in flight."""
        return self._phases.get(request_id)

    def arrives(self, request_id: Hashable, *, is_local: bool) -> Duty:
        """A request has come, or starts again; returns whom to place it with first."""
        if is_local:
            self._phases[request_id] = HandoffPhase.LOCAL
            return Duty.PLACE_DECODE
        if self.spec.order == "decode_first":
            self._phases[request_id] = HandoffPhase.PROMISING
            return Duty.PLACE_DECODE
        self._phases[request_id] = HandoffPhase.PREFILLING
        return Duty.PLACE_PREFILL

    def happens(self, request_id: Hashable, event: HandoffEvent) -> tuple[Duty, ...]:
        """Note an event; returns what has to be done, in order.

        Raises: InvariantError if that cannot happen where the request is; nothing is changed then.
        """
        phase = self._phases.get(request_id)
        row = None if phase is None else TRANSITIONS[phase].get(event)
        if row is None:
            where = "not in flight" if phase is None else phase.value
            raise InvariantError(f"request {request_id} is {where}: not {event.value}")
        self._phases[request_id] = row[0]
        return row[1]

    def ends(self, request_id: Hashable) -> HandoffPhase | None:
        """A request is over, however it ended; returns where it was."""
        return self._phases.pop(request_id, None)
