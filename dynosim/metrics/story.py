"""The life of one request as a list of what happened to it, from arrival to its last token.

Needs a run that kept its trail. Decoding is told in stretches of steps, not token by token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.metrics.waits import Wait, Waits
from dynosim.records import ChunkLog, IntArray, RequestLog, RequestStatus, RunResult
from dynosim.router.witness import SeenChoice


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened to a request, from `at_ms` until `until_ms` (equal: in no time).

    `kind` is arrived, routed, waited, onboarded, prefilled, preempted, handed_over, first_token,
    decoded or ended; `facts` depend on it.
    """

    at_ms: float
    until_ms: float
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind, "at_ms": self.at_ms, "until_ms": self.until_ms, **self.facts,
        }  # fmt: skip


class Stories:
    """Tells the lives of the requests of one run. Raises: ValueError if it kept no trail."""

    def __init__(self, result: RunResult, choices: Sequence[SeenChoice] = ()) -> None:
        if result.trail is None:
            raise ValueError("a story needs a run that recorded its trail")
        self._result = result
        self._chunks = result.trail.chunks
        self._seats = result.trail.seats
        self._choices = choices
        self._egress_ms = egress_ms(result.requests, self._chunks)
        self.waits = Waits(result)

    def of(self, index: int) -> list[Happening]:
        """What happened to the request of this index, in order."""
        log = self._result.requests
        arrival_ms = float(log.arrival_ms[index])
        if np.isnan(arrival_ms):
            return []
        found = [_at(arrival_ms, "arrived", input_tokens=int(log.input_tokens[index]))]
        found += self._routed(index, arrival_ms)
        found += self._seated(index)
        first_ms = float(log.first_token_ms[index])
        if not np.isnan(first_ms):
            found.append(_at(first_ms, "first_token"))
            found.sort(key=lambda happening: (happening.at_ms, happening.kind == "decoded"))
        return [*found, *self._ended(index)]

    def choice_of(self, index: int) -> SeenChoice | None:
        """What its worker was chosen from at last, if that was seen."""
        seen = [choice for choice in self._choices if choice.request_id == index]
        return seen[-1] if seen else None

    def _routed(self, index: int, arrival_ms: float) -> list[Happening]:
        log = self._result.requests
        dispatch_ms = float(log.dispatch_ms[index])
        if np.isnan(dispatch_ms):
            return []
        facts: dict[str, Any] = {"worker_id": int(log.worker_id[index])}
        choice = self.choice_of(index)
        if choice is not None:
            chosen = next(option for option in choice.options if option.slot == choice.slot)
            facts["worker_id"] = int(chosen.worker_id)
            facts["candidates"] = [
                {
                    "worker_id": int(option.worker_id),
                    "cost_blocks": option.cost,
                    "cached_tokens": option.cached_tokens,
                    "prefill_tokens": option.prefill_tokens,
                    "decode_blocks": option.decode_blocks,
                    "requests": option.num_requests,
                }
                for option in choice.options
            ]
        return [Happening(arrival_ms, dispatch_ms, "routed", facts)]

    def _seated(self, index: int) -> list[Happening]:
        """Waits in a worker's queue, and what was done in the seats that followed them."""
        seats, log = self._seats, self._result.requests
        mine = np.flatnonzero(seats.request == index)
        mine = mine[np.argsort(seats.at_ms[mine], kind="stable")]
        since_ms = float(log.dispatch_ms[index])
        found: list[Happening] = []
        handed: list[Happening] | None = self._handed_over(index)
        for place, row in enumerate(mine.tolist()):
            at_ms, worker_id = float(seats.at_ms[row]), int(seats.worker_id[row])
            if handed is not None and worker_id != self._prefill_worker(index):
                found += handed
                since_ms, handed = handed[-1].until_ms, None
            if not seats.is_taken[row]:
                found.append(_at(at_ms, "preempted", worker_id=worker_id))
                since_ms = at_ms
                continue
            facts: dict[str, Any] = {"worker_id": worker_id}
            wait = self.waits.of(index) if place == 0 else None
            if wait is not None:
                facts |= _wait_facts(wait)
            found += self._onboarded(index, since_ms, at_ms)
            found.append(Happening(since_ms, at_ms, "waited", facts))
            until_ms = self._end_ms(index)
            if place + 1 < len(mine):
                until_ms = float(seats.at_ms[mine[place + 1]])
            found += self._served(index, worker_id, at_ms, until_ms)
        return found

    def _onboarded(self, index: int, from_ms: float, until_ms: float) -> list[Happening]:
        """The load of what a prompt had in slower memory, if it was in a wait."""
        onboards = self._result.requests.onboards
        if onboards is None:
            return []
        start_ms, end_ms = float(onboards.start_ms[index]), float(onboards.end_ms[index])
        if not (from_ms <= start_ms and end_ms <= until_ms):  # or there was none
            return []
        facts = {
            "num_tokens": int(onboards.num_tokens[index]),
            "beyond_tokens": int(onboards.num_beyond[index]),
        }
        return [Happening(start_ms, end_ms, "onboarded", facts)]

    def _prefill_worker(self, index: int) -> int | None:
        """The worker that computed a prompt for another one; None: nobody did."""
        handoffs = self._result.requests.handoffs
        worker_id = -1 if handoffs is None else int(handoffs.prefill_worker_id[index])
        return None if worker_id < 0 else worker_id

    def _handed_over(self, index: int) -> list[Happening] | None:
        """The wait for room, and the way of its KV; None for a request that stayed."""
        log, handoffs = self._result.requests, self._result.requests.handoffs
        if handoffs is None or np.isnan(handoffs.transfer_end_ms[index]):
            return None
        from_ms = float(handoffs.prefill_end_ms[index])
        start_ms = float(handoffs.transfer_start_ms[index])
        facts = {
            "worker_id": int(log.worker_id[index]),
            "bytes": int(handoffs.moved_bytes[index]),
            "held_tokens": int(handoffs.held_tokens[index]),
            "room_ms": max(start_ms - from_ms, 0.0),
        }
        return [Happening(start_ms, float(handoffs.transfer_end_ms[index]), "handed_over", facts)]

    def _served(
        self, index: int, worker_id: int, from_ms: float, until_ms: float
    ) -> list[Happening]:
        """What a request did in a seat: its chunks, then the stretches of decoding."""
        chunks = self._chunks
        is_mine = (chunks.request == index) & (chunks.start_ms >= from_ms)
        mine = np.flatnonzero(is_mine & (chunks.start_ms < until_ms))
        mine = mine[np.argsort(chunks.start_ms[mine], kind="stable")]
        found = [self._chunk(row) for row in mine.tolist()]
        computed = chunks.num_computed_before[mine] + chunks.num_tokens[mine]
        if len(mine) and computed[-1] < self._result.requests.input_tokens[index]:
            return found
        begin_ms = found[-1].until_ms if found else from_ms
        if worker_id == self._prefill_worker(index):
            return found
        return [*found, *self._decoded(worker_id, begin_ms, until_ms)]

    def _end_ms(self, index: int) -> float:
        """When a request's last step ended."""
        finish_ms = float(self._result.requests.finish_ms[index])
        return self._result.end_ms if np.isnan(finish_ms) else finish_ms - self._egress_ms

    def _chunk(self, row: int) -> Happening:
        chunks = self._chunks
        return Happening(
            float(chunks.start_ms[row]),
            float(chunks.end_ms[row]),
            "prefilled",
            {
                "worker_id": int(chunks.worker_id[row]),
                "num_tokens": int(chunks.num_tokens[row]),
                "computed_before": int(chunks.num_computed_before[row]),
            },
        )

    def _decoded(self, worker_id: int, from_ms: float, until_ms: float) -> list[Happening]:
        """Stretches of steps with and without the prompts of others."""
        if until_ms <= from_ms:
            return []
        rows = self.waits.rows.between(worker_id, from_ms, until_ms)
        log = self._result.steps
        has_prompts = log.num_prefills[rows] > 0
        borders = np.flatnonzero(np.diff(has_prompts)) + 1
        return [
            self._stretch(part, from_ms, until_ms) for part in np.split(rows, borders) if len(part)
        ]

    def _stretch(self, rows: IntArray, from_ms: float, until_ms: float) -> Happening:
        log = self._result.steps
        ends_ms = log.start_ms[rows] + log.duration_ms[rows]
        facts = {
            "num_steps": int(log.num_steps[rows].sum()),
            "batch_min": int(log.num_decodes[rows].min()),
            "batch_max": int(log.num_decodes[rows].max()),
            "others_prefill_tokens": int(log.prefill_tokens[rows].sum()),
        }
        start_ms = max(float(log.start_ms[rows[0]]), from_ms)
        return Happening(start_ms, min(float(ends_ms[-1]), until_ms), "decoded", facts)

    def _ended(self, index: int) -> list[Happening]:
        log = self._result.requests
        status = RequestStatus(int(log.status[index]))
        finish_ms = float(log.finish_ms[index])
        facts: dict[str, Any] = {
            "status": status.name.lower(),
            "output_tokens": int(log.output_tokens[index]),
        }
        if index in log.errors:
            facts["error"] = log.errors[index]
        if np.isnan(finish_ms):
            finish_ms = float(log.arrival_ms[index])
            if status is RequestStatus.UNFINISHED:
                finish_ms = self._result.end_ms
            elif status is RequestStatus.TIMED_OUT and log.gave_up_ms is not None:
                finish_ms = float(log.gave_up_ms[index])
        return [_at(finish_ms, "ended", **facts)]


def egress_ms(log: RequestLog, chunks: ChunkLog) -> float:
    """How much later than a step ends its tokens reach clients; 0 if there is none to tell."""
    computed = chunks.num_computed_before + chunks.num_tokens
    first_ms = log.first_token_ms[chunks.request]
    is_last = (computed == log.input_tokens[chunks.request]) & (first_ms >= chunks.end_ms)
    late_ms = (first_ms - chunks.end_ms)[is_last]
    return float(late_ms.min(initial=np.inf)) if len(late_ms) else 0.0


def _at(at_ms: float, kind: str, **facts: Any) -> Happening:
    return Happening(at_ms, at_ms, kind, facts)


def _wait_facts(wait: Wait) -> dict[str, Any]:
    return {
        "behind_prefill_ms": wait.behind_prefill_ms,
        "seat_ms": wait.seat_ms,
        "blocks_ms": wait.blocks_ms,
        "step_ms": wait.step_ms,
        "ahead": [
            {"request": one.request, "num_tokens": one.num_tokens, "during_ms": one.during_ms}
            for one in wait.ahead
        ],
        "idle_workers": list(wait.idle_workers),
    }
