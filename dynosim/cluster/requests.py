"""The requests of a trace, as engines take them."""

import numpy as np

from dynosim.blocks.retention import BlockClaims, block_claims
from dynosim.cluster.spec import ClusterSpec
from dynosim.engine.instant import ArrivalTimes
from dynosim.engine.sequence import Sequence
from dynosim.records import Retention, Trace, packed
from dynosim.workload.extents import PrefixExtents

NOTHING = Retention()


class Requests:
    """Makes an engine's sequence of each row, when its time has come."""

    def __init__(self, trace: Trace, extents: PrefixExtents, cluster: ClusterSpec) -> None:
        self.input_tokens = packed(trace.input_tokens)
        self.max_model_len = cluster.max_model_len
        self._block_size = cluster.block_size
        self._output_tokens = packed(trace.output_tokens)
        self._priorities = None if trace.priority is None else packed(trace.priority)
        self._request_ids = trace.request_ids
        self._has_paths = cluster.enable_prefix_caching and len(extents.path) > 0
        self._path = packed(extents.path)
        self._path_offsets = packed(extents.path_offsets)
        self._path_blocks = packed(extents.path_blocks)
        self.prefetches: frozenset[int] = frozenset()  # rows that are no requests
        if trace.is_prefetch is not None:
            self.prefetches = frozenset(np.flatnonzero(trace.is_prefetch).tolist())
        self._arrivals = ArrivalTimes()
        self._claims = None
        if trace.retention is not None and self._has_paths:
            self._claims = RequestClaims(trace, trace.retention, extents, cluster.block_size)

    def __len__(self) -> int:
        return len(self.input_tokens)

    def priority(self, index: int) -> int:
        """A request's priority; lower is served earlier."""
        return 0 if self._priorities is None else self._priorities[index]

    def wanted_tokens(self, index: int) -> int:
        """How many tokens a request will produce, the model's length respected."""
        return min(self._output_tokens[index], self.max_model_len - self.input_tokens[index])

    def again(self, first: Sequence, now_ms: float) -> Sequence:
        """A request on its way to a second engine, while a first one still has it."""
        index = first.index
        second = Sequence(
            index,
            first.prompt_tokens,
            self.wanted_tokens(index),
            first.path,
            first.path_blocks,
            self._arrivals.next(now_ms),
            first.priority,
            first.request_id,
        )
        second.claims = first.claims
        return second

    def sequence(self, index: int, now_ms: float) -> Sequence:
        """A request on its way to an engine."""
        input_tokens = self.input_tokens[index]
        output_tokens = min(self._output_tokens[index], self.max_model_len - input_tokens)
        path: list[int] = []
        path_blocks = 0
        if self._has_paths:
            path = self._path[self._path_offsets[index] : self._path_offsets[index + 1]].tolist()
            path_blocks = self._path_blocks[index]
        request_id = "" if self._request_ids is None else self._request_ids[index]
        sequence = Sequence(
            index,
            input_tokens,
            output_tokens,
            path,
            path_blocks,
            self._arrivals.next(now_ms),
            0 if self._priorities is None else self._priorities[index],
            request_id,
        )
        if self._claims is not None:
            sequence.claims = self._claims.of(index, path)
        if index in self.prefetches:  # whoever asks for it has a token more at least
            sequence.is_prefetch = True
            sequence.prompt_tokens = path_blocks * self._block_size + 1
            sequence.output_tokens = 0
        return sequence


class RequestClaims:
    """What requests say of their blocks, by the extents that they go through.

    A request without a session, or the last of one, is followed by nobody.
    """

    def __init__(
        self,
        trace: Trace,
        retention: tuple[Retention | None, ...],
        extents: PrefixExtents,
        block_size: int,
    ) -> None:
        self._retention = retention
        self._block_size = block_size
        self._input_tokens = trace.input_tokens
        self._extent_blocks: list[int] = extents.extent_blocks.tolist()
        self._last_turn = _last_turns(trace)
        self._pinning = {  # sessions with a turn whose pin ends with them
            self._last_turn[row]
            for row, said in enumerate(retention)
            if said is not None and said.pin_ends_with_session
        }

    def of(self, index: int, path: list[int]) -> BlockClaims | None:
        """What a request claims; None: nothing."""
        retention, session = self._retention[index], self._last_turn[index]
        is_heard = retention is not None and retention.is_ephemeral
        ends_session = session == index and (is_heard or index in self._pinning)
        if retention is None and not ends_session:
            return None
        return block_claims(
            retention or NOTHING,
            [self._extent_blocks[extent] for extent in path],
            self._block_size,
            int(self._input_tokens[index]),
            session=session,
            ends_session=ends_session,
        )


def _last_turns(trace: Trace) -> list[int]:
    """The last turn of each request's session, which may go by its number; without one, itself."""
    last: dict[str, int] = {}
    names = trace.session_ids or ("",) * len(trace)
    for row, name in enumerate(names):
        last[name] = row
    return [last[name] if name else row for row, name in enumerate(names)]
