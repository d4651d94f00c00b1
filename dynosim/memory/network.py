"""Transfers that share links fairly: the station between those who send and those who receive.

A resource is a directed capacity: what a worker sends, what it receives, a node's uplink. A
transfer takes a path of several at one rate. Rates are max-min fair: all rise together, and those
that cross a full resource stop rising. They change only when a transfer begins to flow, arrives or
is cancelled, and only for those that share resources with it, directly or through others: a group.

Each transfer keeps how many bytes were left when its rate last changed, and since when; the time
carries what rounding takes off it (Kahan's summation, as `Pace` does), so that a link that is busy
for long ends its last transfer when it should.
"""

from bisect import insort
from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace
from operator import attrgetter
from typing import Final

from dynosim.engine.instant import instant_end, instant_start
from dynosim.engine.pace import NEVER
from dynosim.errors import InvariantError

BYTES_PER_MS: Final = 1e6
"""Of one GB/s, a GB being 1e9 bytes."""

_WAITING: Final = 0  # its bytes do not flow yet
_FLOWING: Final = 1
_ARRIVED: Final = 2  # and not yet handed out by `complete`
_GONE: Final = 3  # handed out, or cancelled

_number = attrgetter("number")


class Transfer:
    """Bytes on their way along a path; what has an underscore is the network's own.

    `started_ms` is when they begin to flow. `ended_ms` is when the last has arrived or the rest was
    cancelled; NaN until known.
    """

    __slots__ = (
        "_bytes_left",
        "_bytes_per_ms",
        "_due_carry_ms",
        "_due_ms",
        "_fair_share",
        "_group",
        "_since_carry_ms",
        "_since_ms",
        "_state",
        "ended_ms",
        "num_bytes",
        "number",
        "path",
        "started_ms",
    )

    def __init__(
        self, number: int, path: tuple[int, ...], num_bytes: int, started_ms: float
    ) -> None:
        self.number = number
        self.path = path
        self.num_bytes = num_bytes
        self.started_ms = started_ms
        self.ended_ms = float("nan")
        self._state = _WAITING
        self._group = 0  # that reckoned its rate
        self._bytes_left = float(num_bytes)  # at `_since_ms`
        self._bytes_per_ms = 0.0  # since then
        self._fair_share = 0.0  # what that becomes, or minus 1 while it is reckoned
        self._since_ms = started_ms
        self._since_carry_ms = 0.0
        self._due_ms = NEVER  # with this rate
        self._due_carry_ms = 0.0


class _Resource:
    """A directed capacity and who flows through it."""

    __slots__ = ("bytes_per_ms", "flowing", "group", "left_bytes_per_ms", "num_rising")

    def __init__(self, bytes_per_ms: float) -> None:
        self.bytes_per_ms = bytes_per_ms
        self.flowing: list[Transfer] = []
        self.group = 0  # that was reckoned last through it
        self.left_bytes_per_ms = 0.0  # for those whose rate still rises
        self.num_rising = 0


class FairNetwork:
    """Transfers over resources, each at its max-min fair rate.

    Whoever owns it calls `complete` at `next_ms`. Equal inputs give equal times to the bit; times
    that are equal on paper count as one (`engine.instant`).

    `bytes_sent` equals `bytes_received` + `bytes_lost` + `bytes_in_flight` at any time.
    """

    __slots__ = (
        "_arrived",
        "_carry_ms",
        "_dues",
        "_groups",
        "_last_group",
        "_last_number",
        "_now_ms",
        "_resources",
        "_starts",
        "_waiting",
        "bytes_in_flight",
        "bytes_lost",
        "bytes_received",
        "bytes_sent",
        "next_ms",
    )

    def __init__(self) -> None:
        self.next_ms = NEVER  # when `complete` is to be called
        self.bytes_sent = 0  # of all that were begun, without what cancelled ones had left
        self.bytes_received = 0  # that `complete` handed out, and hidden ones
        self.bytes_lost = 0  # had flowed when their transfer was cancelled
        self.bytes_in_flight = 0  # of those begun, neither handed out nor cancelled
        self._resources: list[_Resource] = []
        self._last_number = -1
        self._last_group = 0
        self._now_ms = -NEVER  # the last instant in which rates changed; exactly: plus the carry
        self._carry_ms = 0.0
        self._waiting: dict[int, Transfer] = {}
        self._starts: list[tuple[float, int]] = []  # heap of when, who; stale if not waiting
        self._groups: dict[int, list[Transfer]] = {}
        self._dues: list[tuple[float, int]] = []  # heap of when a group's first arrives; or stale
        self._arrived: list[Transfer] = []  # by number

    def add_resource(self, gb_s: float) -> int:
        """A new directed capacity; returns its number for paths."""
        if not 0 < gb_s < NEVER:
            raise InvariantError(f"a capacity of {gb_s} GB/s")
        self._resources.append(_Resource(gb_s * BYTES_PER_MS))
        return len(self._resources) - 1

    def begin(
        self, path: tuple[int, ...], num_bytes: int, starts_ms: float, now_ms: float
    ) -> Transfer:
        """Take a transfer whose bytes begin to flow at `starts_ms`, now or later."""
        is_way = path[0] != path[1] if len(path) == 2 else len(set(path)) == len(path)
        if num_bytes < 0 or (num_bytes and not path) or not is_way:
            raise InvariantError(f"a transfer of {num_bytes} bytes along {path}")
        if not now_ms <= starts_ms < NEVER:
            raise InvariantError(f"a transfer that starts at {starts_ms}, begun at {now_ms}")
        self._advance(now_ms)
        self._last_number += 1
        transfer = Transfer(self._last_number, path, num_bytes, starts_ms)
        self.bytes_sent += num_bytes
        self.bytes_in_flight += num_bytes
        if starts_ms <= instant_end(now_ms):
            self._move_to(starts_ms, 0.0)
            self._start(transfer)
            self._regroup(path)
        else:
            self._waiting[transfer.number] = transfer
            heappush(self._starts, (starts_ms, transfer.number))
        self._look_ahead()
        return transfer

    def complete(self, now_ms: float) -> list[Transfer]:
        """Hand out what has arrived by this instant, by number."""
        self._advance(now_ms)
        arrived = self._arrived
        if arrived:
            self._arrived = []
            for transfer in arrived:
                transfer._state = _GONE
                self.bytes_received += transfer.num_bytes
                self.bytes_in_flight -= transfer.num_bytes
        self._look_ahead()
        return arrived

    def cancel(self, transfer: Transfer, now_ms: float) -> int:
        """Stop a transfer that `complete` has not handed out; returns the bytes that had flowed."""
        if transfer._state == _GONE:
            raise InvariantError(f"transfer {transfer.number} has been handed out or cancelled")
        self._advance(now_ms)
        num_flowed = 0
        if transfer._state == _WAITING:
            del self._waiting[transfer.number]
        elif transfer._state == _ARRIVED:
            num_flowed = transfer.num_bytes
            self._arrived.remove(transfer)
        else:
            self._move_to(now_ms, 0.0)
            num_flowed = transfer.num_bytes - round(self._left(transfer))
            self._leave(transfer)
            self._regroup(transfer.path)
        transfer._state = _GONE
        transfer.ended_ms = now_ms
        self.bytes_lost += num_flowed
        self.bytes_sent -= transfer.num_bytes - num_flowed
        self.bytes_in_flight -= transfer.num_bytes
        self._look_ahead()
        return num_flowed

    def add_hidden(self, num_bytes: int) -> None:
        """Count bytes that flowed beside these transfers, behind a prefill's compute."""
        if num_bytes < 0:
            raise InvariantError(f"{num_bytes} hidden bytes")
        self.bytes_sent += num_bytes
        self.bytes_received += num_bytes

    # ---- the order of events ---------------------------------------------------------------------

    def _advance(self, now_ms: float) -> None:
        """Do what is due by this instant, one instant after the other."""
        if now_ms < instant_start(self._now_ms):
            raise InvariantError(f"{now_ms} ms comes after {self._now_ms} ms")
        until_ms = instant_end(now_ms)
        while self.next_ms <= until_ms and self._drop_stale() <= until_ms:
            self._do_instant()

    def _look_ahead(self) -> None:
        """Set `next_ms`."""
        next_ms = self._drop_stale()
        for transfer in self._arrived:
            next_ms = min(next_ms, transfer.ended_ms)
        self.next_ms = next_ms

    def _drop_stale(self) -> float:
        """When the next transfer begins to flow or arrives."""
        starts, dues = self._starts, self._dues
        while starts and starts[0][1] not in self._waiting:
            heappop(starts)
        while dues and dues[0][1] not in self._groups:
            heappop(dues)
        next_ms = dues[0][0] if dues else NEVER
        return min(next_ms, starts[0][0]) if starts else next_ms

    def _do_instant(self) -> None:
        """Do all that is due in the next instant; rates are reckoned once."""
        starts, dues = self._starts, self._dues
        if dues and (not starts or dues[0][0] <= starts[0][0]):
            group = self._groups[dues[0][1]]
            first = group[0]
            for transfer in group:
                if transfer._due_ms < first._due_ms:
                    first = transfer
            self._move_to(first._due_ms, first._due_carry_ms)
        else:
            self._move_to(starts[0][0], 0.0)
        until_ms = instant_end(self._now_ms)
        touched: list[int] = []
        while dues and dues[0][0] <= until_ms:
            for transfer in self._groups.pop(heappop(dues)[1], ()):
                if transfer._due_ms <= until_ms:
                    self._leave(transfer)
                    self._arrive(transfer)
                    touched.extend(transfer.path)
        while starts and starts[0][0] <= until_ms:
            waiting = self._waiting.pop(heappop(starts)[1], None)
            if waiting is not None:
                self._start(waiting)
                touched.extend(waiting.path)
        self._regroup(touched)

    def _move_to(self, time_ms: float, carry_ms: float) -> None:
        """Let the present be `time_ms`, unless it is the same instant."""
        if time_ms > instant_end(self._now_ms):
            self._now_ms = time_ms
            self._carry_ms = carry_ms

    # ---- who flows where -------------------------------------------------------------------------

    def _start(self, transfer: Transfer) -> None:
        if transfer.num_bytes == 0:
            self._arrive(transfer)
            return
        transfer._state = _FLOWING
        transfer._since_ms = self._now_ms
        transfer._since_carry_ms = self._carry_ms
        for number in transfer.path:
            self._resources[number].flowing.append(transfer)

    def _arrive(self, transfer: Transfer) -> None:
        transfer._state = _ARRIVED
        transfer.ended_ms = max(self._now_ms, transfer.started_ms)
        if self._arrived:
            insort(self._arrived, transfer, key=_number)
        else:
            self._arrived.append(transfer)

    def _leave(self, transfer: Transfer) -> None:
        for number in transfer.path:
            self._resources[number].flowing.remove(transfer)
        self._groups.pop(transfer._group, None)

    def _left(self, transfer: Transfer) -> float:
        """At present."""
        elapsed_ms = (self._now_ms - transfer._since_ms) + (
            self._carry_ms - transfer._since_carry_ms
        )
        left = transfer._bytes_left - transfer._bytes_per_ms * elapsed_ms
        return max(0.0, left)

    # ---- rates -----------------------------------------------------------------------------------

    def _regroup(self, touched: Sequence[int]) -> None:
        """Reckon the rates of all that share resources with these, directly or through others."""
        before = self._last_group
        for number in touched:
            resource = self._resources[number]
            if resource.flowing and resource.group <= before:
                self._last_group += 1
                self._group_around(resource)

    def _group_around(self, resource: _Resource) -> None:
        group = self._last_group
        if len(resource.flowing) == 1 and self._flows_alone(resource.flowing[0], group):
            return
        resource.group = group
        resources = [resource]
        transfers: list[Transfer] = []
        for reached in resources:  # grows while we look
            for transfer in reached.flowing:
                if transfer._group != group:
                    self._groups.pop(transfer._group, None)
                    transfer._group = group
                    transfers.append(transfer)
                    for number in transfer.path:
                        other = self._resources[number]
                        if other.group != group:
                            other.group = group
                            resources.append(other)
        self._fill(resources, transfers)
        due_ms = NEVER
        for transfer in transfers:
            if transfer._fair_share != transfer._bytes_per_ms:  # else nothing is rounded
                self._set_rate(transfer)
            if transfer._due_ms < due_ms:
                due_ms = transfer._due_ms
        self._groups[group] = transfers
        heappush(self._dues, (due_ms, group))

    def _flows_alone(self, transfer: Transfer, group: int) -> bool:
        """Make a group of a transfer that shares no resource; returns whether it shares none."""
        rate = NEVER
        for number in transfer.path:
            crossed = self._resources[number]
            if len(crossed.flowing) > 1:
                return False
            if crossed.bytes_per_ms < rate:
                rate = crossed.bytes_per_ms
        for number in transfer.path:
            self._resources[number].group = group
        self._groups.pop(transfer._group, None)
        transfer._group = group
        transfer._fair_share = rate
        if rate != transfer._bytes_per_ms:  # else nothing is rounded
            self._set_rate(transfer)
        self._groups[group] = [transfer]
        heappush(self._dues, (transfer._due_ms, group))
        return True

    def _fill(self, resources: list[_Resource], transfers: list[Transfer]) -> None:
        """Let all rates rise together; who crosses a resource that is full rises no further.

        While some stop, the level at which a resource is full only rises: one that has risen since
        it was reckoned is put back.
        """
        for transfer in transfers:
            transfer._fair_share = -1.0
        levels: list[tuple[float, int]] = []
        for index, resource in enumerate(resources):
            resource.left_bytes_per_ms = resource.bytes_per_ms
            resource.num_rising = len(resource.flowing)
            levels.append((resource.bytes_per_ms / resource.num_rising, index))
        heapify(levels)
        while levels:
            level, index = levels[0]
            resource = resources[index]
            if not resource.num_rising:
                heappop(levels)
                continue
            share = resource.left_bytes_per_ms / resource.num_rising
            if share > level:
                heapreplace(levels, (share, index))
            else:
                self._fix(resource, share)

    def _fix(self, full: _Resource, share: float) -> None:
        """Let those who cross a full resource rise no further than this share."""
        for transfer in full.flowing:
            if transfer._fair_share < 0:
                transfer._fair_share = share
                for number in transfer.path:
                    crossed = self._resources[number]
                    crossed.left_bytes_per_ms -= share
                    crossed.num_rising -= 1

    def _set_rate(self, transfer: Transfer) -> None:
        """Let it flow at its fair share from now on."""
        rate = transfer._fair_share
        transfer._bytes_left = left = self._left(transfer)
        transfer._bytes_per_ms = rate
        transfer._since_ms = self._now_ms
        transfer._since_carry_ms = self._carry_ms
        exact_ms = left / rate + self._carry_ms
        transfer._due_ms = self._now_ms + exact_ms
        transfer._due_carry_ms = exact_ms - (transfer._due_ms - self._now_ms)
