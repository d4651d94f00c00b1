"""One pool that a planner scales: its limits, its step times, what its engines say, its vote."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dynosim.planner.budget import clip
from dynosim.planner.capacity import best_point
from dynosim.planner.engine_model import EngineModel, PassTimes, RequestMix
from dynosim.planner.load import (
    EASY,
    SCALE_DOWN,
    LoadThresholds,
    both,
    by_itl,
    by_thresholds,
    by_ttft,
    threshold_load,
)
from dynosim.planner.observation import EngineReport, Observation, PoolCard, PoolState, WorkerState
from dynosim.planner.planner_spec import ROLES, PlannerSpec
from dynosim.planner.pool_scaler import direction
from dynosim.planner.regression import PassSamples
from dynosim.planner.stabilizer import Stabilizer
from dynosim.planner.start_times import StartTimes
from dynosim.planner.throughput import correction
from dynosim.planner.traffic import Traffic
from dynosim.planner.vote import Vote
from dynosim.workers.lifecycle import Phase

METRICS_STALE = "metrics_stale"
NO_FPM_DATA = "no_fpm_data"
WORKER_COUNT_MISMATCH = "worker_count_mismatch"
INSUFFICIENT_DATA = "insufficient_data"


@dataclass(slots=True)
class Ask:
    """What is wanted of a pool, while it is being decided; `wanted`: what it was told before."""

    pool: str
    current: int
    wanted: int
    target: int
    verdict: str = "no_change"
    reasons: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(state: PoolState) -> "Ask":
        """Nothing is wanted of it yet."""
        current = state.count(Phase.STARTING) + state.count(Phase.READY)
        return Ask(state.name, current, state.wanted, state.wanted)

    def hold(self, verdict: str, reason: str) -> None:
        """Leave it as it is."""
        self.target, self.verdict = self.wanted, verdict
        self.reasons.append(reason)

    def want(self, target: int, reason: str) -> None:
        """Ask for so many, and call it by its direction."""
        self.target, self.verdict = target, direction(self.wanted, target)
        self.reasons.append(reason)


@dataclass(frozen=True, slots=True)
class Regret:
    """So many replicas were come down to at a request rate, and were then too few."""

    replicas: int
    rps: float


_NEAR = 0.02  # what requests may differ by for an engine's capacity to be the same


@dataclass(frozen=True, slots=True)
class _Capacity:
    """What an engine serves of such requests."""

    engine: EngineModel
    mix: RequestMix
    usable_rps: float


class ScaledPool:
    """Knows of the pool what outlasts a look."""

    def __init__(self, card: PoolCard, spec: PlannerSpec, times: PassTimes | None) -> None:
        self.card = card
        self.least = spec.min_replicas(card.role)
        self.most = spec.max_replicas(card.role)
        self.lower_bound: int | None = None  # what demand takes, where load decides within it
        self.last_target: int | None = None  # what this planner said last
        self.foreign_changes = 0  # how often somebody else said otherwise
        self.looks_to_cancel = 0  # in a row, that found even fewer than those ready enough
        self.at_ease_ms: float | None = None  # since when those ready do, while others start
        self.came_down: tuple[int, float] | None = None  # by load: to how many, and when
        self.regret: Regret | None = None
        self.starts = StartTimes()
        self.stabilizer = Stabilizer(spec.scale_down_stabilization_ms)
        self.is_first = card.role == ROLES[spec.mode][0]  # requests wait for a worker of it first
        self._spec = spec
        self._times = times
        self._factors = (1.0, 1.0)
        self._engine: EngineModel | None = None  # as it was asked for last
        self._capacity: _Capacity | None = None
        self.samples = PassSamples(
            card.role,
            max_samples=spec.max_num_fpm_samples,
            num_cells=spec.fpm_sample_bucket_size,
            min_samples=spec.load_min_observations,
            warmup_ms=spec.fpm_warmup_ms,
        )

    def within(self, replicas: int) -> int:
        """The nearest number within its limits."""
        return clip(replicas, self.least, self.most)

    def note_others(self, ask: Ask) -> None:
        """See whether somebody else has set its replicas since this planner did."""
        if self.last_target is not None and self.last_target != ask.wanted:
            self.foreign_changes += 1
            told = f"somebody else made it {ask.wanted}, this planner had said {self.last_target}"
            ask.reasons.append(told)
        ask.figures["foreign_changes"] = float(self.foreign_changes)

    def engine(self) -> EngineModel | None:
        """Its engines' times; None while there are none."""
        times = self._times if self._times is not None else self.samples.fitted()
        if times is None:
            return None
        if self._engine is None or self._engine.times is not times:
            engine = EngineModel.of(self.card, times, *self._factors)
            self._engine = replace(engine, spreads_prompts=self._spec.spread_prompts)
        return self._engine

    def usable_rps(self, mix: RequestMix) -> float | None:
        """Requests a second that one engine may take of such; None while step times are not known.

        What was found for nearly the same requests is taken again.
        """
        engine = self.engine()
        if engine is None:
            return None
        found = self._capacity
        if found is None or found.engine is not engine or not _is_near(found.mix, mix):
            spec = self._spec
            point = best_point(self.card.role, engine, mix, spec.ttft_ms, spec.itl_ms)
            found = self._capacity = _Capacity(engine, mix, point.rps * spec.max_utilization)
        return found.usable_rps

    def why_no_engine(self) -> str:
        """A sentence on the step times that are missing."""
        young = f", {self.samples.num_young} of young workers left out"
        return (
            f"step times are not known: no model was given, and {self.samples.num_samples} steps "
            f"were seen{young if self.samples.num_young else ''}, too few or too alike for a fit"
        )

    def learn(self, seen: Observation) -> None:
        """Take in what its engines reported, where no step times were given."""
        state = seen.pool(self.card.name)
        self.starts.note(state)
        if self._times is not None:
            return
        ready_ms = {one.worker_id: one.since_ms for one in state.workers if _is_ready(one)}
        self.samples.forget({one.worker_id for one in state.workers})
        for report in seen.reports:
            if report.worker_id in ready_ms and report.pool == self.card.name:
                self.samples.take(report, ready_ms[report.worker_id])

    def correct(self, seen: Traffic, mix: RequestMix, reports: Sequence[EngineReport]) -> None:
        """Let times follow what was observed, beside what they said of the same load."""
        self._factors, self._engine = (1.0, 1.0), None
        engine = self.engine()
        if engine is None:
            return
        tail = self._spec.correct_by_tail
        ttft_ms, itl_ms = (
            (seen.ttft_ms_tail, seen.itl_ms_tail) if tail else (seen.ttft_ms, seen.itl_ms)
        )
        first, gap = 1.0, 1.0
        if self.card.role != "decode":
            first = correction(ttft_ms, engine.prompts_ms(mix.computed_isl, mix))
        busy = [report for report in reports if report.num_running > 0]
        if self.card.role != "prefill" and busy:
            num_seqs = max(1, round(sum(report.num_running for report in busy) / len(busy)))
            kv_tokens = sum(report.decode_kv_tokens for report in busy) / len(busy)
            gap = correction(itl_ms, engine.decode_ms(num_seqs, kv_tokens) / mix.accept_length)
        self._factors, self._engine = (first, gap), None

    def correction_figures(self) -> dict[str, float]:
        """The factors that apply, where any may."""
        if not self._spec.latency_correction:
            return {}
        return {"ttft_factor": self._factors[0], "itl_factor": self._factors[1]}

    def reports(self, seen: Observation) -> list[EngineReport]:
        """Those of its ready workers, whatever their age."""
        ready = {one.worker_id for one in seen.pool(self.card.name).workers if _is_ready(one)}
        return [one for one in seen.reports if one.worker_id in ready]

    def fresh_reports(self, seen: Observation) -> list[EngineReport]:
        """Those that are not too old."""
        limit_ms = self._spec.max_metric_age_ms
        return [one for one in self.reports(seen) if seen.now_ms - one.at_ms <= limit_ms]

    def all_reports(self, seen: Observation, ask: Ask) -> list[EngineReport] | None:
        """One of each ready worker; None, and the ask held, where one is missing or too old."""
        num_ready = seen.pool(self.card.name).count(Phase.READY)
        heard = self.reports(seen)
        fresh, limit_ms = self.fresh_reports(seen), self._spec.max_metric_age_ms
        if len(fresh) == num_ready and fresh:
            return fresh
        if len(fresh) < len(heard):
            age_ms = max(seen.now_ms - one.at_ms for one in heard)
            ask.figures["report_age_ms_max"] = age_ms
            ask.hold(
                METRICS_STALE, f"an engine's report is {_s(age_ms)} old, {_s(limit_ms)} at most"
            )
        elif not heard:
            ask.hold(NO_FPM_DATA, f"none of {num_ready} ready workers has reported")
        else:
            told = f"{len(fresh)} of {num_ready} ready workers have reported"
            ask.hold(WORKER_COUNT_MISMATCH, told)
        return None

    def vote(self, reports: Sequence[EngineReport], mix: RequestMix | None) -> Vote:
        """One replica more, one fewer, or none. At least one report."""
        target = self._spec.optimization_target
        if target != "sla":
            role, size = self.card.role, self._size()
            loads = [threshold_load(role, target, report, size) for report in reports]
            return by_thresholds(loads, self._thresholds())
        if all(is_idle(report) for report in reports):
            told = f"all {len(reports)} engines are idle"
            return Vote(-1, SCALE_DOWN, (told,), is_at_ease=True)
        engine = self.engine()
        if engine is None:
            return Vote(0, INSUFFICIENT_DATA, (self.why_no_engine(),))
        if mix is None:
            return Vote(0, INSUFFICIENT_DATA, ("the frontend has told of no request yet",))
        share = self._spec.load_scaling_down_sensitivity / 100
        ttft_ms, itl_ms = self._spec.ttft_ms, self._spec.itl_ms
        if self.card.role == "prefill":
            return by_ttft(reports, engine, mix, ttft_ms, share)
        if self.card.role == "decode":
            return by_itl(reports, engine, mix, itl_ms, share)
        prefill = by_ttft(reports, engine, mix, ttft_ms, share)
        return both(prefill, by_itl(reports, engine, mix, itl_ms, share))

    def _size(self) -> int:
        """What a load is measured by; see `threshold_load`."""
        size = self.card.max_model_len if self.card.role == "prefill" else self.card.max_kv_tokens
        return size or 1  # 1: only where the thresholds are tokens

    def _thresholds(self) -> LoadThresholds:
        spec = self._spec
        role = "prefill" if self.card.role == "prefill" else "decode"
        if spec.optimization_target != "load":
            return EASY[spec.optimization_target, role]
        if role == "prefill":
            up, down = spec.prefill_scale_up_queue_tokens, spec.prefill_scale_down_queue_tokens
            return LoadThresholds("queued prompt tokens", up or 0.0, down or 0.0, True, True)
        up, down = spec.decode_scale_up_kv_rate, spec.decode_scale_down_kv_rate
        return LoadThresholds("KV in use and asked for", up or 0.0, down or 0.0, True, True, " %")


def is_idle(report: EngineReport) -> bool:
    """Whether an engine has nothing to do, now or waiting."""
    return not (report.num_running or report.num_waiting or report.queued_prefill_tokens)


def _is_near(one: RequestMix, other: RequestMix) -> bool:
    pairs = (
        (one.isl, other.isl),
        (one.osl, other.osl),
        (one.computed_isl, other.computed_isl),
        (one.accept_length, other.accept_length),
    )
    return all(abs(a - b) <= _NEAR * b for a, b in pairs)


def _is_ready(worker: WorkerState) -> bool:
    return worker.phase is Phase.READY


def _s(ms: float) -> str:
    return f"{ms / 1e3:.4g} s"
