"""A controller in the twin: it is shown the deployment, and what it decides is carried out.

A `ScalingProcess` is one process of the control plane. It scrapes the frontend's metrics at equal
intervals, comes to the controller whenever that wants to look, and launches and drains workers as
it says. With several in one run each sees what the others wanted, as `PoolState.wanted`.
"""

from dataclasses import dataclass, field

from dynosim.cluster.books import PoolChange
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.sight import Sight, pool_state
from dynosim.cluster.spec import ClusterSpec
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim.planner.decision import PoolDecision, changes
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation, PoolCard, Scrape
from dynosim.workers.lifecycle import Phase
from dynosim.workload.load import NEVER


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSpec:
    """What lies between a deployment and its controller.

    Metrics are scraped every `scrape_interval_ms`, but for `outages` (from, to); a scrape can be
    seen `metric_lag_ms` later. What is decided is carried out after `actuation_delay_ms`, unless
    another number has been decided for the pool meanwhile. An engine tells of at most `max_passes`
    steps at a time. If requests have waited for a worker to come for `max_wait_ms` while nothing
    else went on, the run ends: nobody will launch one. `keeps_metrics`: looks are kept with all
    that was seen, not only with decisions.

    Raises: ConfigError naming a value that makes no sense.
    """

    scrape_interval_ms: float = 10_000.0
    metric_lag_ms: float = 0.0
    outages: tuple[tuple[float, float], ...] = ()
    actuation_delay_ms: float = 0.0
    max_passes: int = 4
    max_wait_ms: float = 3_600_000.0
    keeps_metrics: bool = True
    labels: FrontendLabels = field(default_factory=FrontendLabels)

    def __post_init__(self) -> None:
        if not 0 < self.scrape_interval_ms < NEVER:
            raise ConfigError(
                f"scrape_interval_ms: expected more than 0, got {self.scrape_interval_ms}"
            )
        for key in ("metric_lag_ms", "actuation_delay_ms", "max_passes"):
            value = getattr(self, key)
            if not 0 <= value < NEVER:
                raise ConfigError(f"{key}: expected at least 0, got {value}")
        for from_ms, to_ms in self.outages:
            if not from_ms < to_ms:
                raise ConfigError(f"outages: expected from < to, got {from_ms:g} to {to_ms:g}")

    def is_out(self, now_ms: float) -> bool:
        """Whether there are no metrics now."""
        return any(from_ms <= now_ms < to_ms for from_ms, to_ms in self.outages)


@dataclass(slots=True)
class _Order:
    """A decision on its way to a pool."""

    due_ms: float
    pool: str
    target: int


class ScalingProcess:
    """Drives a controller; it is the `Process` of one run. `looks` are all of its, in order."""

    def __init__(self, controller: Controller, spec: ScalingSpec | None = None) -> None:
        self.looks: list[Look] = []
        self._controller = controller
        self._spec = ScalingSpec() if spec is None else spec
        self._scrapes: list[Scrape] = []  # that nobody has looked at yet
        self._orders: list[_Order] = []
        self._idle_since_ms = NEVER  # requests wait for a worker, and nothing else goes on
        self._sight: Sight | None = None

    def __call__(self, control: ControlPlane) -> ProcessGenerator:
        """See `dynosim.cluster.control`; what arrives from now on is seen."""
        control.books.is_controlled = True
        self._sight = Sight(control, self._spec.labels, self._spec.max_passes)
        return self._run(control, self._sight)

    def scrape_at_end(self, end_ms: float) -> Scrape:
        """The metrics once the run is over. Raises: RuntimeError if none has begun."""
        if self._sight is None:
            raise RuntimeError("nothing has run under this controller")
        return self._sight.scrape(end_ms)

    def _run(self, control: ControlPlane, sight: Sight) -> ProcessGenerator:
        spec, controller = self._spec, self._controller
        scrape_ms = 0.0
        while True:
            order_ms = min([order.due_ms for order in self._orders], default=NEVER)
            next_ms = max(min(scrape_ms, controller.next_ms, order_ms), control.now_ms)
            yield control.env.timeout(next_ms - control.now_ms)
            now_ms = next_ms
            if order_ms <= now_ms:
                self._carry_out_due(control, now_ms)
            if scrape_ms <= now_ms:
                if not spec.is_out(now_ms):
                    self._scrapes.append(sight.scrape(now_ms))
                scrape_ms += spec.scrape_interval_ms
                self._end_if_nobody_comes(control, now_ms)
            if controller.next_ms <= now_ms:
                self._look(control, sight, now_ms)

    def _look(self, control: ControlPlane, sight: Sight, now_ms: float) -> None:
        visible_ms = now_ms - self._spec.metric_lag_ms
        seen = Observation(
            now_ms,
            sight.pools(),
            tuple(scrape for scrape in self._scrapes if scrape.at_ms <= visible_ms),
            sight.reports(now_ms),
        )
        self._scrapes = [scrape for scrape in self._scrapes if scrape.at_ms > visible_ms]
        decision = self._controller.look(seen)
        look = Look(seen, decision)
        self.looks.append(look if self._spec.keeps_metrics else look.without_metrics())
        if decision is None or decision.is_advisory:
            return
        for pool in decision.pools:
            self._take(control, pool, now_ms)
        self._carry_out_due(control, now_ms)

    def _take(self, control: ControlPlane, decided: PoolDecision, now_ms: float) -> None:
        """A pool is to have so many workers; another number that was to come about is so no more.

        The same number said again stays due when it was: who decides more often than the delay is
        long would otherwise never be obeyed.
        """
        control.wanted[decided.pool] = decided.target
        if any((one.pool, one.target) == (decided.pool, decided.target) for one in self._orders):
            return
        self._orders = [order for order in self._orders if order.pool != decided.pool]
        due_ms = now_ms + self._spec.actuation_delay_ms
        self._orders.append(_Order(due_ms, decided.pool, decided.target))

    def _carry_out_due(self, control: ControlPlane, now_ms: float) -> None:
        due = [order for order in self._orders if order.due_ms <= now_ms]
        self._orders = [order for order in self._orders if order.due_ms > now_ms]
        for order in due:
            carry_out(control, order.pool, order.target)

    def _end_if_nobody_comes(self, control: ControlPlane, now_ms: float) -> None:
        if not control.is_waiting_only or any(
            worker.phase is Phase.STARTING for worker in control.alive
        ):
            self._idle_since_ms = NEVER
            return
        self._idle_since_ms = min(self._idle_since_ms, now_ms)
        if now_ms - self._idle_since_ms >= self._spec.max_wait_ms:
            control.stop()


def carry_out(control: ControlPlane, pool: str, target: int) -> None:
    """Give a pool `target` workers: launch some, or drain those that are missed least."""
    state = pool_state(pool, control.wanted[pool], control.alive)
    alive = state.count(Phase.STARTING) + state.count(Phase.READY)
    change = changes(state, target)
    for _ in range(change.num_launched):
        control.launch(pool)
    for worker_id in change.drained:
        control.drain(worker_id)
    if alive != target:
        control.books.changes.append(PoolChange(control.now_ms, pool, alive, target))


def pool_cards(cluster: ClusterSpec) -> tuple[PoolCard, ...]:
    """What a controller may know of the pools before the run."""
    return tuple(
        PoolCard(
            name=pool.name,
            role=pool.role,
            gpus_per_worker=pool.gpus_per_worker,
            max_num_seqs=pool.engine.max_active * pool.ranks.number,
            max_num_batched_tokens=pool.engine.max_num_batched_tokens,
            max_kv_tokens=pool.engine.usable_blocks * pool.engine.block_size * pool.ranks.number,
            max_model_len=pool.engine.max_model_len,
        )
        for pool in cluster.pools
    )
