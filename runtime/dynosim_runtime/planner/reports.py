"""What engines say of themselves, as controllers take it.

A simulated engine has a page for it. Others tell on their metrics' page how many requests run and
wait, and how much of their KV is in use. What they do not tell is worked out where it can be: KV in
use counts as that of sequences that decode, and who waits as having a prompt of average length.
They tell nothing of single steps. An engine whose load cannot be told reports nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

import aiohttp
import msgspec

from dynosim.planner.observation import EngineReport
from dynosim_runtime.adapters.metrics import EngineLoad, parse_load
from dynosim_runtime.card import LiveCard
from dynosim_runtime.mock.report import PAGE, MockReport
from dynosim_runtime.outage import Outage
from dynosim_runtime.planner.workforce import Serving

REPORT_TIMEOUT_S = 2.0
MAX_PASSES = 4  # that an engine tells of at a time, as in the twin
OK = 200

log = logging.getLogger(__name__)


class ReportGatherer:
    """The latest report of each worker that has ever told, and is alive."""

    def __init__(self, session: aiohttp.ClientSession, now_ms: Callable[[], float]) -> None:
        self._session = session
        self._now_ms = now_ms
        self._latest: dict[int, EngineReport] = {}
        self._num_steps: dict[int, int] = {}  # by worker: of which it has told
        self._outages: dict[int, Outage] = {}

    @property
    def latest(self) -> tuple[EngineReport, ...]:
        """By worker."""
        return tuple(report for _, report in sorted(self._latest.items()))

    @property
    def num_requests(self) -> dict[int, int]:
        """By worker, as it told last."""
        return {one.worker_id: one.num_running + one.num_waiting for one in self._latest.values()}

    def keep_only(self, alive: Iterable[int]) -> None:
        """Forget who is not alive."""
        known = set(alive)
        for table in (self._latest, self._num_steps, self._outages):
            for worker_id in [one for one in table if one not in known]:
                del table[worker_id]

    async def gather(self, serving: Sequence[Serving], prompt_tokens: float | None) -> None:
        """Ask all of them at once, for a bounded time; `prompt_tokens` is a prompt's average."""
        await asyncio.gather(*(self._ask(worker, prompt_tokens) for worker in serving))

    async def _ask(self, worker: Serving, prompt_tokens: float | None) -> None:
        outage = self._outages.setdefault(
            worker.worker_id, Outage(log, f"{worker.card.name} does not report", _FORESEEN)
        )
        try:
            report = await self._report(worker, prompt_tokens)
        except _FORESEEN as error:
            outage.failed(error)
            return
        outage.worked()
        if report is not None:
            self._latest[worker.worker_id] = report

    async def _report(self, worker: Serving, prompt_tokens: float | None) -> EngineReport | None:
        if worker.card.engine == "mock":
            return await self._of_mock(worker)
        return await self._of_engine(worker, prompt_tokens)

    async def _of_mock(self, worker: Serving) -> EngineReport:
        told = self._num_steps.get(worker.worker_id, 0)
        page = f"{PAGE}?after={told}&limit={MAX_PASSES}"
        found = msgspec.json.decode(await self._page(worker.card, page), type=MockReport)
        self._num_steps[worker.worker_id] = found.num_steps
        return EngineReport(
            worker.worker_id,
            worker.pool,
            self._now_ms(),
            found.num_running,
            found.num_waiting,
            found.queued_prefill_tokens,
            found.decode_kv_tokens,
            found.queued_decode_kv_tokens,
            found.used_kv_share,
            found.passes,
        )

    async def _of_engine(self, worker: Serving, prompt_tokens: float | None) -> EngineReport | None:
        text = (await self._page(worker.card, "/metrics")).decode(errors="replace")
        load = parse_load(worker.card.engine, text)
        return report_of_load(worker, load, prompt_tokens, self._now_ms())

    async def _page(self, card: LiveCard, path: str) -> bytes:
        timeout = aiohttp.ClientTimeout(REPORT_TIMEOUT_S)
        async with self._session.get(f"{card.url}{path}", timeout=timeout) as answer:
            answer.raise_for_status()
            return await answer.read()


_FORESEEN = (aiohttp.ClientError, OSError, TimeoutError, ValueError)


def report_of_load(
    worker: Serving, load: EngineLoad, prompt_tokens: float | None, now_ms: float
) -> EngineReport | None:
    """An engine's metrics as a report, without steps; None where they do not tell its load.

    `prompt_tokens` is the average of a prompt; None: not known, which matters if anybody waits.
    """
    running, waiting, usage = load.num_running, load.num_waiting, load.kv_usage
    if running is None or waiting is None or usage is None:
        return None
    if waiting and prompt_tokens is None:
        return None
    card = worker.card
    held = usage * (card.total_kv_blocks or 0) * card.block_size
    return EngineReport(
        worker.worker_id,
        worker.pool,
        now_ms,
        running,
        waiting,
        round(waiting * (prompt_tokens or 0.0)),
        round(held),
        0,
        usage,
    )
