"""What happens to a cluster by a script: workers crash, hang, slow down; links are cut; and so on.

A scenario is a list of values. `play` makes a process of each that acts on the control plane when
its time has come; so a scenario of one's own is a function beside these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from dynosim.cluster.control import ControlPlane, Process, ProcessGenerator, WorkerView
from dynosim.cluster.event_faults import EventFault
from dynosim.errors import ConfigError
from dynosim.workers.lifecycle import Phase

Replaced = Literal["start", "takeover", "none"]
"""What comes after a lost worker: a new one that starts up, a standby that takes over, nothing."""


@dataclass(frozen=True, slots=True)
class WorkerTarget:
    """One worker: that of this number, from 0, among all that its pool has had."""

    pool: str
    number: int

    def __str__(self) -> str:
        return f"{self.pool}/{self.number}"

    def finds(self, worker: WorkerView) -> bool:
        """Whether it is this one."""
        return worker.pool == self.pool and worker.place == self.number


@dataclass(frozen=True, slots=True)
class PlaceTarget:
    """All workers of a place: a node, a rack, a zone."""

    domain: str
    value: str

    def __str__(self) -> str:
        return f"{self.domain}={self.value}"

    def finds(self, worker: WorkerView) -> bool:
        """Whether it is there."""
        return worker.topology.get(self.domain) == self.value


Target = WorkerTarget | PlaceTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """Who takes a lost worker's place: after `after_ms`, ready `takeover_ms` later if a standby."""

    kind: Replaced = "start"
    after_ms: float = 0.0
    takeover_ms: float = 0.0


class ScenarioEvent(Protocol):
    """Something that happens at `at_ms`, with all that follows from it."""

    @property
    def at_ms(self) -> float:
        """When it begins."""
        ...

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """Act on the cluster, from `at_ms` on. Raises: ConfigError if the cluster is not so."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """So many more workers of a pool start."""

    at_ms: float
    pool: str
    count: int = 1

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        for _ in range(self.count):
            control.launch(self.pool)
        yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Workers take no more requests and go when they have done what they have."""

    at_ms: float
    target: Target

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        for worker in _found(self.target, control, what="drain"):
            control.drain(worker.worker_id)
        yield from ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """Workers die; their requests move on at once, or, if they hang, when that is detected.

    `detect_ms`: from then until it is noticed; until then they get requests and do nothing.
    """

    at_ms: float
    target: Target
    detect_ms: float = 0.0
    replacement: Replacement = Replacement()

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        lost = _found(self.target, control, what="hang" if self.detect_ms else "fail")
        if self.detect_ms > 0:
            for worker in lost:
                if worker.phase is Phase.READY:
                    _try(control, control.hang, worker.worker_id)
            yield control.env.timeout(self.detect_ms)
            lost = _alive(lost, control)
        for worker in lost:
            control.fail(worker.worker_id)
        yield from _replace(lost, self.replacement, control)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotLoss:
    """Workers are given notice, drain, and are gone when it has run out.

    What takes their place starts with the notice.
    """

    at_ms: float
    target: Target
    notice_ms: float
    replacement: Replacement = Replacement()

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        lost = _found(self.target, control, what="spot_loss")
        for worker in lost:
            control.drain(worker.worker_id)
        control.env.process(_replace(lost, self.replacement, control))
        yield control.env.timeout(self.notice_ms)
        for worker in _alive(lost, control):
            control.fail(worker.worker_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """Workers' steps take `factor` times as long for a while; None: from then on."""

    at_ms: float
    target: Target
    factor: float
    for_ms: float | None = None

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        slowed = _found(self.target, control, what="slow")
        for worker in slowed:
            _try(control, control.slow, worker.worker_id, self.factor)
        if self.for_ms is not None:
            yield control.env.timeout(self.for_ms)
            for worker in _alive(slowed, control):
                _try(control, control.slow, worker.worker_id, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLinks:
    """For a while nothing gets from prefill to decode workers."""

    at_ms: float
    for_ms: float

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        _try(control, control.cut_links)
        yield control.env.timeout(self.for_ms)
        control.mend_links()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoseFrontend:
    """A frontend is gone for a while, and the requests that it had with it."""

    at_ms: float
    number: int
    for_ms: float

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        _try(control, control.lose_frontend, self.number)
        yield control.env.timeout(self.for_ms)
        control.restore_frontend(self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventTrouble:
    """For a while a share of the KV events of workers (None: all) is lost, and the rest is late.

    Routers notice by the numbers of events, which `with_numbered_events` lets a cluster have.
    """

    at_ms: float
    for_ms: float
    target: Target | None = None
    lost_share: float = 0.0
    delay_ms: float = 0.0

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        ids = None
        if self.target is not None:
            found = {(one.pool, one.place) for one in _found(self.target, control, what="events")}
            ids = frozenset(
                one.worker_id for one in control.workers if (one.pool, one.place) in found
            )
        try:
            begun = control.begin_event_fault(EventFault(ids, self.lost_share, self.delay_ms))
        except ValueError as error:
            raise _mistake(control, error) from None
        yield control.env.timeout(self.for_ms)
        control.end_event_fault(begun)


def play(events: Sequence[ScenarioEvent]) -> list[Process]:
    """A process for each event."""
    return [_process(event) for event in events]


def _process(event: ScenarioEvent) -> Process:
    def process(control: ControlPlane) -> ProcessGenerator:
        with control.expected():
            yield control.env.timeout(event.at_ms)
            yield from event.happen(control)

    return process


def _replace(
    lost: Sequence[WorkerView], replacement: Replacement, control: ControlPlane
) -> ProcessGenerator:
    if replacement.kind == "none" or not lost:
        return
    with control.expected():
        if replacement.after_ms:
            yield control.env.timeout(replacement.after_ms)
        for worker in lost:
            if replacement.kind == "takeover":
                control.launch(worker.pool, startup_ms=replacement.takeover_ms)
            else:
                control.launch(worker.pool)


def _found(target: Target, control: ControlPlane, *, what: str) -> list[WorkerView]:
    """The workers it names that are still there, each by its first rank.

    Raises: ConfigError if none ever was.
    """
    named = [worker for worker in control.workers if not worker.rank and target.finds(worker)]
    if not named:
        raise ConfigError(
            f"scenario: {what}: {target}: at {control.now_ms / 1e3:g} s there has been no such "
            f"worker (pools by now: {', '.join(_sizes(control))})"
        )
    return _alive(named, control)


def _sizes(control: ControlPlane) -> Iterator[str]:
    for pool in dict.fromkeys(worker.pool for worker in control.workers):
        count = sum(worker.pool == pool and not worker.rank for worker in control.workers)
        yield f"{pool}/0" if count == 1 else f"{pool}/0 to {pool}/{count - 1}"


def _alive(workers: Sequence[WorkerView], control: ControlPlane) -> list[WorkerView]:
    """Those that have neither gone nor failed by now."""
    ids = {worker.worker_id for worker in workers}
    over = (Phase.GONE, Phase.FAILED)
    return [one for one in control.workers if one.worker_id in ids and one.phase not in over]


def _try(control: ControlPlane, act: Callable[..., None], *arguments: float) -> None:
    """Act; what cannot be done is a mistake of the script. Raises: ConfigError."""
    try:
        act(*arguments)
    except ValueError as error:
        raise _mistake(control, error) from None


def _mistake(control: ControlPlane, error: ValueError) -> ConfigError:
    return ConfigError(f"scenario: at {control.now_ms / 1e3:g} s: {error}")
