"""Ranks all trials of a space by the mean field, and says which of them are worth a simulation.

What both see alike (a router, a seed) the mean field cannot rank: trials that it cannot tell from
the last that is tried are tried, too, and so is the best of each mode.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any, TypeVar

from dynosim.build.cluster import transfer_spec
from dynosim.build.engine import Prepared
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import DynosimError, TraceError
from dynosim.files.digest import digest
from dynosim.memory.kv_transfer import HandoffCost, SideLayout
from dynosim.sweep.bound import reusable_share, scheduled_rps
from dynosim.sweep.ledger import Record
from dynosim.sweep.meanfield import (
    BatchCurve,
    MeanBounds,
    MeanField,
    MeanLoad,
    MeanRequest,
    MeanTransfer,
    aggregated,
    aggregated_curve,
    decode_curve,
    disaggregated,
    prefill_curve,
)
from dynosim.sweep.space import Trial
from dynosim.sweep.status import INFEASIBLE, SCREENED
from dynosim.sweep.trial import cached_prepared, cached_trace
from dynosim.timing.mean_field import Allowances

BYTES_PER_GB = 1e9
CANNOT_TELL = 1e-6
"""Predictions that differ by no more are equal."""
T = TypeVar("T")
_CURVES: Mapping[str, Callable[..., BatchCurve]] = {
    "agg": aggregated_curve, "prefill": prefill_curve, "decode": decode_curve,
}  # fmt: skip


@dataclass(slots=True)
class Screening:
    """What the mean field says of all trials. `order` are those that can be run, the best first."""

    order: list[int] = field(default_factory=list)
    ranks: dict[int, int] = field(default_factory=dict)  # place in the order, from 1
    fields: dict[int, MeanField | None] = field(default_factory=dict)  # None: it keeps no bound
    refused: dict[int, str] = field(default_factory=dict)  # cannot be run, and why
    kept: set[int] = field(default_factory=set)

    def keys_of(self, index: int) -> dict[str, Any]:
        """What a trial's row says of it."""
        found = self.fields.get(index)
        if index not in self.fields:
            return {}
        told: dict[str, Any] = {"screen_rank": self.ranks[index]}
        if found is None:
            return told
        return told | {
            "screen_rps": found.rps,
            "screen_output_tok_s_per_gpu": found.tok_s_per_gpu,
            "screen_ttft_ms": found.ttft_ms,
            "screen_tpot_ms": found.tpot_ms,
            "screen_limit": found.limit,
        }

    def records(self) -> dict[int, Record]:
        """Of trials that are not tried."""
        out = [index for index in self.order if index not in self.kept]
        found: dict[int, Record] = {
            index: {"status": SCREENED, "reason": self._why(index), "report": self.keys_of(index)}
            for index in out
        }
        return found | {
            index: {"status": INFEASIBLE, "reason": why, "report": {}}
            for index, why in self.refused.items()
        }

    def _why(self, index: int) -> str:
        place = f"rank {self.ranks[index]} of {len(self.order)} by the mean field"
        found = self.fields[index]
        if found is None:
            return f"{place}: no batch keeps the SLA"
        return (
            f"{place}: {found.rps:.3g} requests/s, {found.tok_s_per_gpu:.3g} output tokens/s per "
            f"GPU, bound by {found.limit}"
        )


def screened(sweep: SweepConfig, trials: Sequence[Trial]) -> Screening:
    """The trials' ranking, and those that are to be tried. Raises: TraceError."""
    field_of = _Fields(sweep)
    found = Screening()
    for trial in trials:
        if trial.config is None:
            continue
        try:
            found.fields[trial.index] = field_of(trial.config)
        except TraceError:
            raise
        except DynosimError as error:
            found.refused[trial.index] = str(error)
    found.order = sorted(found.fields, key=lambda index: (-_worth(found.fields[index]), index))
    found.ranks = {index: rank for rank, index in enumerate(found.order, 1)}
    modes = {t.index: t.config.cluster.mode for t in trials if t.config is not None}
    found.kept = _kept(sweep, found, modes)
    return found


def _worth(found: MeanField | None) -> float:
    return -1.0 if found is None else found.tok_s_per_gpu


def _kept(sweep: SweepConfig, found: Screening, modes: Mapping[int, str]) -> set[int]:
    order = found.order
    num_kept = min(len(order), sweep.search.num_kept(len(order)))
    kept = set(order[:num_kept])
    last = _worth(found.fields[order[num_kept - 1]]) if num_kept else 0.0
    if last > 0:
        kept |= {i for i in order if _worth(found.fields[i]) >= last * (1.0 - CANNOT_TELL)}
    for mode in dict.fromkeys(modes[index] for index in order):
        kept.add(next(index for index in order if modes[index] == mode))
    return kept


class _Fields:
    """The mean field of any layout of a sweep; what pools, workloads and links mean is kept."""

    def __init__(self, sweep: SweepConfig) -> None:
        self._sweep = sweep
        sla = sweep.constraints.sla
        bounds = () if sla is None else (sla.ttft_ms, sla.itl_ms, sla.e2e_ms)
        self._bounds = MeanBounds(*(inf if bound is None else bound for bound in bounds))
        self._factors = Allowances(*sweep.search.factors)
        self._kept: dict[str, Any] = {}

    def __call__(self, config: RunConfig) -> MeanField | None:
        """Raises: DynosimError for what cannot be run."""
        request, load = self._asked(config)
        if not config.cluster.is_disagg:
            curve, ranks = self._curve(config, "agg", request)
            return aggregated(
                curve, request, workers=config.cluster.workers, num_gpus=config.num_gpus,
                ranks=ranks, bounds=self._bounds, load=load,
            )  # fmt: skip
        prefill, _ = self._curve(config.for_pool("prefill"), "prefill", request)
        decode, ranks = self._curve(config.for_pool("decode"), "decode", request)
        cluster = config.cluster
        return disaggregated(
            prefill, decode, request, ranks=ranks,
            workers=(cluster.prefill.workers, cluster.decode.workers), num_gpus=config.num_gpus,
            transfer=self._transfer(config, request), factors=self._factors, bounds=self._bounds,
            load=load,
        )  # fmt: skip

    def _asked(self, config: RunConfig) -> tuple[MeanRequest, MeanLoad]:
        """The workload by its means, and at which load it is to be served."""
        workload = config.workload.model_dump(mode="json")
        caches = [pool.engine.enable_prefix_caching for pool in config.pools()]

        def look() -> tuple[MeanRequest, MeanLoad]:
            trace = cached_trace(config)
            request = MeanRequest(
                float(trace.input_tokens.mean()),
                float(trace.output_tokens.mean()),
                reusable_share(trace) if caches[0] else 0.0,
            )
            if self._sweep.load.search != "fixed":
                return request, MeanLoad()
            if config.workload.concurrency is not None:
                return request, MeanLoad(in_flight=float(config.workload.concurrency))
            rps = scheduled_rps(trace)
            return request, MeanLoad(rps=rps) if isfinite(rps) else MeanLoad()

        return self._once([workload, caches[0], config.seed], look)

    def _curve(self, pool: RunConfig, kind: str, request: MeanRequest) -> tuple[BatchCurve, int]:
        """What a worker does by batch size, and how many ranks it has."""
        sections = {"engine", "timing", "model", "hardware"}

        def look() -> tuple[BatchCurve, int]:
            prepared: Prepared = cached_prepared(pool)
            ranks = prepared.ranks.number
            curve = _CURVES[kind](prepared.engine, prepared.timing, request, ranks=ranks)
            return curve, ranks

        shown = pool.model_dump(mode="json", include=sections)
        return self._once([kind, shown, pool.workload.sampling, asdict(request)], look)

    def _transfer(self, config: RunConfig, request: MeanRequest) -> MeanTransfer:
        """What the links of so many workers carry of such requests."""
        section = config.cluster.transfer
        assert section is not None
        prefill, decode = config.pools()
        sides = [
            SideLayout(tensor_parallel=p.engine.tensor_parallel, block_size=p.engine.block_size)
            for p in (prefill, decode)
        ]

        def look() -> HandoffCost:
            spec = transfer_spec(config)
            return HandoffCost(
                link=spec.link, geometry=spec.geometry, prefill=sides[0], decode=sides[1],
                exposed_share=spec.exposed_share,
            )  # fmt: skip

        shown = [section.model_dump(mode="json"), [asdict(side) for side in sides]]
        model = [config.model, prefill.engine.kv_cache_dtype]
        cost = self._once(["link", shown, model], look)
        missing = 1.0 - request.reused if section.moves == "destination_missing" else 1.0
        tokens = max(1, round(request.isl * missing))
        gb_s = min(
            prefill.cluster.workers * cost.link.worker_gb_s(sides[0].tensor_parallel),
            decode.cluster.workers * cost.link.worker_gb_s(sides[1].tensor_parallel),
        )
        return MeanTransfer(gb_s * BYTES_PER_GB / cost.wire_bytes(tokens), cost.unloaded_ms(tokens))

    def _once(self, name: Any, look: Callable[[], T]) -> T:
        key = digest(json.loads(json.dumps(name)))
        if key not in self._kept:
            self._kept[key] = look()
        found: T = self._kept[key]
        return found
