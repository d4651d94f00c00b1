"""From a timing section to the model it describes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dynosim.config.timing import (
    AiconfiguratorTiming,
    FittedTiming,
    FixedTiming,
    LinearTiming,
    PolynomialTiming,
    ProfileTiming,
    RooflineTiming,
    TimingConfig,
)
from dynosim.errors import ConfigError, DynosimError
from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel
from dynosim.timing.model import StepTimeModel, set_client_path
from dynosim.timing.protocols import TimedEngine
from dynosim.timing.sampler import Sampling


def build_timing(
    timing: TimingConfig,
    *,
    model: str | None,
    hardware: str | None,
    engine: TimedEngine,
    num_gpu_blocks: int,
    graph_sizes: tuple[int, ...] | None = None,
    link_gb_per_s: float | None = None,
    sampling: Sampling = "greedy",
    cache_dir: Path | str | None = None,
    resolve: Callable[[str], Path] = Path,
) -> StepTimeModel:
    """The step-time model of one engine.

    `num_gpu_blocks` is what the polynomials normalise by, `graph_sizes` are the batches that the
    engine has CUDA graphs of (none: it launches every kernel; None: the engine's default),
    `link_gb_per_s` is a link between GPUs other than the hardware's usual one, `sampling` is how
    requests have their tokens chosen, `resolve` turns a path of the configuration into one that
    opens, `cache_dir` overrides the cache folder.

    Raises: ConfigError if a needed model or hardware is missing, unknown or not covered;
    TraceError if a profile cannot be used.
    """
    make = _MAKERS.get(timing.kind)
    if make is None:
        raise ConfigError(_unknown_kind(timing.kind))
    timed = _Timed(
        kind=timing.kind,
        model=model,
        hardware=hardware,
        engine=engine,
        num_gpu_blocks=num_gpu_blocks,
        graph_sizes=graph_sizes,
        link_gb_per_s=link_gb_per_s,
        sampling=sampling,
        cache_dir=cache_dir,
        resolve=resolve,
    )
    times = make(timing, timed)
    set_client_path(times, ingress_ms=timing.ingress_ms, egress_ms=timing.egress_ms)
    return times


def sections_by_trust(
    *,
    step_overhead_ms: float | None = None,
    ingress_ms: float | None = None,
    egress_ms: float | None = None,
) -> tuple[TimingConfig, ...]:
    """Step times of a known model on known hardware: from tables, else from the roofline."""
    keys = {
        "step_overhead_ms": step_overhead_ms,
        "ingress_ms": ingress_ms,
        "egress_ms": egress_ms,
    }
    return (
        AiconfiguratorTiming.of({"kind": "aiconfigurator", **keys}),
        RooflineTiming.of({"kind": "roofline", **keys}),
    )


def blind_timing(
    *,
    model: str,
    hardware: str,
    engine: TimedEngine,
    step_overhead_ms: float | None = None,
    ingress_ms: float | None = None,
    egress_ms: float | None = None,
    graph_sizes: tuple[int, ...] | None = None,
    link_gb_per_s: float | None = None,
    sampling: Sampling = "greedy",
    cache_dir: Path | str | None = None,
) -> StepTimeModel:
    """What is believed of an engine that nobody has measured: the first of `sections_by_trust` that
    covers it.

    Raises: ConfigError of the last one if none does.
    """
    problem: DynosimError | None = None
    for section in sections_by_trust(
        step_overhead_ms=step_overhead_ms, ingress_ms=ingress_ms, egress_ms=egress_ms
    ):
        try:
            return build_timing(
                section,
                model=model,
                hardware=hardware,
                engine=engine,
                num_gpu_blocks=2,
                graph_sizes=graph_sizes,
                link_gb_per_s=link_gb_per_s,
                sampling=sampling,
                cache_dir=cache_dir,
            )
        except DynosimError as error:
            problem = error
    assert problem is not None
    raise problem


@dataclass(frozen=True, slots=True)
class _Timed:
    """What is to be timed, and where things lie; some kinds need no model or hardware."""

    kind: str
    model: str | None
    hardware: str | None
    engine: TimedEngine
    num_gpu_blocks: int
    graph_sizes: tuple[int, ...] | None
    link_gb_per_s: float | None
    sampling: Sampling
    cache_dir: Path | str | None
    resolve: Callable[[str], Path]

    def needed_model(self) -> str:
        return self._needed("model", self.model)

    def needed_hardware(self) -> str:
        return self._needed("hardware", self.hardware)

    def _needed(self, key: str, value: str | None) -> str:
        if value is None:
            raise ConfigError(f"{key}: missing; `timing: {{kind: {self.kind}}}` needs it")
        return value


def _fixed(timing: FixedTiming, _: _Timed) -> StepTimeModel:
    return FixedModel(timing.prefill_ms, timing.decode_ms)


def _linear(timing: LinearTiming, _: _Timed) -> StepTimeModel:
    return LinearModel(
        base_ms=timing.base_ms,
        per_prefill_token_ms=timing.per_prefill_token_ms,
        per_decode_ms=timing.per_decode_ms,
        per_context_token_ms=timing.per_context_token_ms,
    )


def _polynomial(_: PolynomialTiming, timed: _Timed) -> StepTimeModel:
    return PolynomialModel(timed.num_gpu_blocks * timed.engine.block_size)


def _profile(timing: ProfileTiming, timed: _Timed) -> StepTimeModel:
    from dynosim.silicon.profile_file import load_profile

    return load_profile(timed.resolve(timing.file))


def _fitted(timing: FittedTiming, timed: _Timed) -> StepTimeModel:
    from dynosim.silicon.fitted_file import load_fitted

    return load_fitted(timed.resolve(timing.file))


def _aiconfigurator(timing: AiconfiguratorTiming, timed: _Timed) -> StepTimeModel:
    from dynosim.silicon.aiconfigurator import aiconfigurator_model

    return aiconfigurator_model(
        timing,
        model=timed.needed_model(),
        hardware=timed.needed_hardware(),
        engine=timed.engine,
        graph_sizes=timed.graph_sizes,
        link_gb_per_s=timed.link_gb_per_s,
        sampling=timed.sampling,
        cache_dir=timed.cache_dir,
    )


def _roofline(timing: RooflineTiming, timed: _Timed) -> StepTimeModel:
    from dynosim.silicon.catalogue import model_entry
    from dynosim.silicon.hardware import hardware_sheet
    from dynosim.silicon.surroundings import surroundings_of
    from dynosim.timing.architecture import model_shape, require_divisible
    from dynosim.timing.module_formats import module_formats
    from dynosim.timing.roofline import RooflineModel
    from dynosim.timing.roofline_ranks import RankedRoofline

    model, hardware, engine = timed.needed_model(), timed.needed_hardware(), timed.engine
    entry = model_entry(model)
    shape = model_shape(entry)
    require_divisible(shape, engine.tensor_parallel)
    sheet = hardware_sheet(hardware)
    if timed.link_gb_per_s is not None:
        sheet = replace(sheet, link_gb_per_s=timed.link_gb_per_s, links_by_gpus=())
    around = surroundings_of(
        sheet, shape, engine, timing, graph_sizes=timed.graph_sizes, sampling=timed.sampling
    )
    options: dict[str, Any] = {
        "tensor_parallel": engine.tensor_parallel,
        "formats": module_formats(entry, shape, engine.quantization),
        "is_link_stated": timed.link_gb_per_s is not None,
        "kv_element_bytes": 1.0 if (engine.kv_cache_dtype or "auto").startswith("fp8") else 2.0,
        "host": around.host,
        "kernel": around.kernel,
        "per_sequence_ms": around.sampling_ms,
        "graph_sizes": around.graph_sizes,
        "name": entry.name,
    }
    times: StepTimeModel
    if shape.experts and (engine.data_parallel > 1 or engine.expert_parallel):
        options |= {
            "data_parallel": engine.data_parallel,
            "expert_parallel": engine.expert_parallel,
        }
        times = RankedRoofline(shape, sheet, **options)
    else:
        times = RooflineModel(shape, sheet, **options)
    around.describe(times)
    return times


_MAKERS: dict[str, Callable[[Any, _Timed], StepTimeModel]] = {
    "fixed": _fixed,
    "linear": _linear,
    "polynomial": _polynomial,
    "profile": _profile,
    "fitted": _fitted,
    "aiconfigurator": _aiconfigurator,
    "roofline": _roofline,
}


def _unknown_kind(kind: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(str(kind), _MAKERS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(_MAKERS)}"
    return f"timing.kind: unknown {kind!r}; {hint}"
