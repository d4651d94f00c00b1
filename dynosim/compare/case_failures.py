"""Published case of failures: what becomes of streams, of the overloaded, and of a takeover."""

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.cluster.scenario import Crash, Replacement, WorkerTarget, play
from dynosim.compare.case_kit import Outcome, alike, equal, large_engine, prompts
from dynosim.metrics import summarize
from dynosim.records import RequestStatus, RunResult, Trace
from dynosim.router.busy import BusyThresholds
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

CRASH_MS, COLD_MS, TAKEOVER_MS = 10_000.0, 60_000.0, 5_000.0
THRESHOLD_TOKENS, PROMPT_TOKENS = 2500, 1000
_TIMES = LinearModel(
    base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.2, per_context_token_ms=0.0
)
_LOST = WorkerTarget("workers", 0)


def failures() -> list[Outcome]:
    """Migration, rejection, and a standby that takes over."""
    return [*_migration(), *_rejection(), *_takeover()]


def _migration() -> list[Outcome]:
    """One of two workers dies under load."""
    crash = Crash(at_ms=CRASH_MS, target=_LOST, replacement=Replacement(kind="none"))
    result = _run(alike(200, inputs=512, outputs=300, gap_ms=100.0), 2, crash)
    log = result.requests
    moved = log.migrations > 0
    report = summarize(result, _TIMES, sla=None, wall_time_ms=0.0)
    wanted, got = int(moved.sum()) * 300, int(log.output_tokens[moved].sum())
    gaps = int(report["num_itl_samples"])
    return [
        Outcome("requests moved by a crash", "some", str(moved.sum()), bool(moved.any())),
        equal("tokens that their clients get, to those asked for", wanted, got),
        equal("gaps between tokens of all clients: no token twice", 200 * 299, gaps),
        equal("requests that fail", 0, int(report["failed_requests"])),
    ]


def _rejection() -> list[Outcome]:
    """Prompts that come at once, to a worker that is busy above so many prompt tokens."""
    pool = PoolSpec(engine=large_engine(), times=_TIMES, workers=1)
    busy = BusyThresholds(active_prefill_tokens_threshold=THRESHOLD_TOKENS)
    routing = RoutingSpec(RouterSpec(pool.block_size, mode="kv", busy=busy))
    cluster = ClusterSpec(pools=(pool,), routing=routing)
    counts = {}
    for name, gap_ms in (("at once", 0.0), ("one after another", 500.0)):
        trace = alike(20, inputs=PROMPT_TOKENS, outputs=2, gap_ms=gap_ms)
        log = simulate(trace, cluster).requests
        reasons = [why for why in log.errors.values() if why.startswith("HTTP 503")]
        assert len(reasons) == (log.status == RequestStatus.REJECTED).sum()
        counts[name] = len(reasons)
    accepted = THRESHOLD_TOKENS // PROMPT_TOKENS + 1  # the last is taken while below
    return [
        equal(
            "503s of 20 prompts at once, threshold 2.5 of them", 20 - accepted, counts["at once"]
        ),
        equal("503s of the same one after another", 0, counts["one after another"]),
    ]


def _takeover() -> list[Outcome]:
    """The only worker dies; a standby with the weights in memory takes over, its cache empty."""
    cold, shadow = _lost_worker("start"), _lost_worker("takeover")
    gone = _lost_worker("takeover", migration_limit=0)
    calm = _lost_worker("takeover", outputs=1, gap_ms=1500.0).requests  # nobody is in flight then
    is_after = calm.dispatch_ms > CRASH_MS
    before, after = calm.cached_tokens[~is_after][1:], calm.cached_tokens[is_after]
    failed = (gone.requests.status == RequestStatus.FAILED) & (gone.requests.worker_id == 0)
    in_flight = (shadow.requests.migrations > 0).sum()
    return [
        equal("s without a worker: a standby", TAKEOVER_MS / 1e3, _outage_s(shadow)),
        equal("... a cold start", COLD_MS / 1e3, _outage_s(cold)),
        equal("least cached tokens of a prompt before, of 512", 512 - 16, int(before.min())),
        equal("cached tokens of the first prompt after", 0, int(after[0])),
        equal("requests in flight that move", int(in_flight), int(failed.sum())),
    ]  # fmt: skip


def _lost_worker(
    kind: str,
    *,
    migration_limit: int | None = None,
    outputs: int = 100,
    gap_ms: float = 100.0,
) -> RunResult:
    """The same prompt again and again, on one worker that dies; who finds none waits."""
    replacement = Replacement(kind=kind, takeover_ms=TAKEOVER_MS)  # type: ignore[arg-type]
    crash = Crash(at_ms=CRASH_MS, target=_LOST, replacement=replacement)
    trace = prompts([list(range(1, 33))] * 200, block_tokens=16, outputs=outputs, gap_ms=gap_ms)
    return _run(trace, 1, crash, migration_limit=migration_limit)


def _run(
    trace: Trace, workers: int, crash: Crash, *, migration_limit: int | None = None
) -> RunResult:
    pool = PoolSpec(engine=large_engine(), times=_TIMES, workers=workers, startup_ms=COLD_MS)
    routing = RoutingSpec(RouterSpec(pool.block_size, mode="kv"))
    cluster = ClusterSpec(pools=(pool,), routing=routing)
    options = RunOptions(waits_for_workers=True, migration_limit=migration_limit)
    return simulate(trace, cluster, options, processes=play([crash]))


def _outage_s(result: RunResult) -> float:
    return float(result.workers.ready_ms[1] - result.workers.ended_ms[0]) / 1e3
