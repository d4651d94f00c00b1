"""A controller in real time: it is shown a deployment, and what it decides is carried out.

The live counterpart of `dynosim.cluster.scaling`: it scrapes the frontend's metrics at equal
intervals, comes to the controller when that wants to look, with what the engines report at that
moment, and launches and drains workers as it says. Milliseconds are those since the driver began.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import aiohttp

from dynosim.config.controllers import ScalingConfig
from dynosim.planner.controller import Controller
from dynosim.planner.decision import PoolDecision, ScalingDecision, changes
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation, PoolState, Scrape
from dynosim.workers.lifecycle import Phase
from dynosim_runtime.errors import LiveError
from dynosim_runtime.outage import Outage
from dynosim_runtime.planner.reports import ReportGatherer
from dynosim_runtime.planner.scraping import mean_prompt_tokens, scrape
from dynosim_runtime.planner.workforce import Workforce

log = logging.getLogger(__name__)


class StopWatch:
    """Milliseconds since it was made, by the event loop's clock, which only goes forward."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._origin_s = self._loop.time()

    def __call__(self) -> float:
        return (self._loop.time() - self._origin_s) * 1e3

    async def sleep_until(self, at_ms: float) -> None:
        """Returns at that time or later; never, at infinity."""
        if at_ms == inf:
            await asyncio.Event().wait()
        while (left_ms := at_ms - self()) > 0:
            await asyncio.sleep(left_ms / 1e3)


@dataclass(slots=True)
class _Order:
    """A decision on its way to a pool."""

    due_ms: float
    target: int


Listener = Callable[[Look], None]
"""Hears of every look."""


class ScalingDriver:
    """Drives a controller from `run` until that is cancelled.

    Without `carries_out` its decisions are only told of. `say` gets sentences for whoever runs the
    deployment; `heard` every look, before anything is carried out.
    """

    def __init__(
        self,
        controller: Controller,
        workforce: Workforce,
        *,
        url: str,
        scaling: ScalingConfig,
        watch: StopWatch,
        carries_out: bool = True,
        say: Callable[[str], None] = lambda text: None,
        heard: Listener = lambda look: None,
    ) -> None:
        self.last: Look | None = None
        self._controller = controller
        self._workforce = workforce
        self._url = url
        self._scaling = scaling
        self._watch = watch
        self._carries_out = carries_out
        self._say = say
        self._heard = heard
        self._scrapes: list[Scrape] = []  # that nobody has looked at yet
        self._last_scrape: Scrape | None = None
        self._orders: dict[str, _Order] = {}
        self._trouble: dict[str, str] = {}  # by pool: why its workers cannot be launched
        self._outage = Outage(log, "the frontend's metrics cannot be read")

    async def run(self) -> None:
        """Scrape, look and carry out. Raises: whatever only a defect can."""
        async with _session() as session:
            reports = ReportGatherer(session, self._watch)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_scraping(session))
                group.create_task(self._keep_looking(reports))

    def status(self) -> dict[str, Any]:
        """What it decided last, as plain data."""
        last = self.last
        decision = None if last is None else last.decision
        return {
            "controller": self._controller.name,
            "at_ms": None if last is None else round(last.seen.now_ms, 3),
            "pools": [
                {"pool": one.pool, "current": one.current, "target": one.target,
                 "verdict": one.verdict, "reasons": list(one.reasons)}
                for one in (() if decision is None else decision.pools)
            ],
        }  # fmt: skip

    # ---- what is seen ----------------------------------------------------------------------------

    async def _keep_scraping(self, session: aiohttp.ClientSession) -> None:
        due_ms = 0.0
        while True:
            await self._watch.sleep_until(due_ms)
            if not self._is_out(self._watch()):
                await self._scrape(session)
            due_ms = _next(due_ms, self._scaling.scrape_interval_ms, self._watch())

    async def _scrape(self, session: aiohttp.ClientSession) -> None:
        try:
            values = await scrape(session, self._url)
        except LiveError as error:
            self._outage.failed(error)
            return
        self._outage.worked()
        self._last_scrape = Scrape(self._watch(), values)
        self._scrapes.append(self._last_scrape)

    def _is_out(self, now_ms: float) -> bool:
        return any(one.from_ms <= now_ms < one.to_ms for one in self._scaling.outages)

    async def _keep_looking(self, reports: ReportGatherer) -> None:
        while True:
            due_ms = min([order.due_ms for order in self._orders.values()], default=inf)
            await self._watch.sleep_until(min(due_ms, self._controller.next_ms))
            now_ms = self._watch()
            await self._carry_out_due(reports, now_ms)
            if self._controller.next_ms <= now_ms:
                await self._look(reports)

    async def _look(self, reports: ReportGatherer) -> None:
        workforce = self._workforce
        await reports.gather(workforce.serving(), mean_prompt_tokens(self._last_scrape))
        now_ms = self._watch()
        pools = tuple(self._pool(name, reports) for name in workforce.wanted)
        reports.keep_only(worker.worker_id for pool in pools for worker in pool.workers)
        visible_ms = now_ms - self._scaling.metric_lag_ms
        seen = Observation(
            now_ms,
            pools,
            tuple(one for one in self._scrapes if one.at_ms <= visible_ms),
            reports.latest,
        )
        self._scrapes = [one for one in self._scrapes if one.at_ms > visible_ms]
        decision = self._controller.look(seen)
        self.last = Look(seen, decision)
        self._heard(self.last)
        if decision is not None and self._carries_out and not decision.is_advisory:
            self._take(decision, now_ms)
            await self._carry_out_due(reports, now_ms)

    def _pool(self, name: str, reports: ReportGatherer) -> PoolState:
        return self._workforce.pool(name, reports.num_requests)

    # ---- what is done ----------------------------------------------------------------------------

    def _take(self, decision: ScalingDecision, now_ms: float) -> None:
        """What was on its way to a pool is so no more, unless the same is said again."""
        for decided in decision.pools:
            self._workforce.wanted[decided.pool] = decided.target
            order = self._orders.get(decided.pool)
            if order is None or order.target != decided.target:
                due_ms = now_ms + self._scaling.actuation_delay_ms
                self._orders[decided.pool] = _Order(due_ms, decided.target)
            self._tell(decided)

    def _tell(self, decided: PoolDecision) -> None:
        if decided.target != decided.current:
            why = f": {'; '.join(decided.reasons)}" if decided.reasons else ""
            change = f"{decided.current} to {decided.target} workers"
            self._say(f"{decided.pool}: {change}, {decided.verdict}{why}")

    async def _carry_out_due(self, reports: ReportGatherer, now_ms: float) -> None:
        for pool in [pool for pool, order in self._orders.items() if order.due_ms <= now_ms]:
            await self._carry_out(self._pool(pool, reports), self._orders.pop(pool).target)

    async def _carry_out(self, pool: PoolState, target: int) -> None:
        """Launch or drain. What cannot be launched is not waited for: it is not wanted any more."""
        change = changes(pool, target)
        for worker_id in change.drained:
            self._workforce.drain(worker_id)
        alive = pool.count(Phase.STARTING) + pool.count(Phase.READY)
        for number in range(change.num_launched):
            try:
                await self._workforce.launch(pool.name)
            except LiveError as error:
                self._workforce.wanted[pool.name] = alive + number
                self._tell_trouble(pool.name, str(error))
                return
        if change.num_launched:
            self._trouble.pop(pool.name, None)

    def _tell_trouble(self, pool: str, why: str) -> None:
        """Once, until it is over or another one."""
        if self._trouble.get(pool) != why:
            self._trouble[pool] = why
            self._say(f"{pool}: no more workers: {why}")


def _next(due_ms: float, interval_ms: float, now_ms: float) -> float:
    """The first of the times at equal intervals that is yet to come."""
    missed = max(0.0, (now_ms - due_ms) // interval_ms)
    return due_ms + (missed + 1) * interval_ms


@contextlib.asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(trust_env=False) as session:
        yield session
