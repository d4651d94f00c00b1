"""From a timing section to the model it describes."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from dynosim.errors import ConfigError
from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.protocols import (
    AiconfiguratorSettings,
    EngineSettings,
    FixedSettings,
    LinearSettings,
    ProfileSettings,
    TimingSettings,
)

KINDS = ("fixed", "linear", "polynomial", "profile", "aiconfigurator", "roofline")


def build_timing(
    timing: TimingSettings,
    *,
    model: str | None,
    hardware: str | None,
    engine: EngineSettings,
    num_gpu_blocks: int,
    cache_dir: Path | str | None = None,
    resolve: Callable[[str], Path] = Path,
) -> StepTimeModel:
    """The step-time model of one engine.

    `num_gpu_blocks` is what the polynomials normalise by, `resolve` turns a path of the
    configuration into one that opens, `cache_dir` overrides the cache folder.

    Raises: ConfigError if a needed model or hardware is missing, unknown or not covered;
    TraceError if a profile cannot be used.
    """
    kind = timing.kind
    if kind == "fixed":
        fixed = cast(FixedSettings, timing)
        return FixedModel(fixed.prefill_ms, fixed.decode_ms)
    if kind == "linear":
        linear = cast(LinearSettings, timing)
        return LinearModel(
            base_ms=linear.base_ms,
            per_prefill_token_ms=linear.per_prefill_token_ms,
            per_decode_ms=linear.per_decode_ms,
            per_context_token_ms=linear.per_context_token_ms,
        )
    if kind == "polynomial":
        return PolynomialModel(num_gpu_blocks * engine.block_size)
    if kind == "profile":
        from dynosim.timing.profile import load_profile

        return load_profile(resolve(cast(ProfileSettings, timing).file))
    if kind == "aiconfigurator":
        from dynosim.timing.aiconfigurator import aiconfigurator_model

        return aiconfigurator_model(
            cast(AiconfiguratorSettings, timing),
            model=_needed("model", model, kind),
            hardware=_needed("hardware", hardware, kind),
            engine=engine,
            cache_dir=cache_dir,
        )
    if kind == "roofline":
        return _roofline(
            timing, _needed("model", model, kind), _needed("hardware", hardware, kind), engine
        )
    nearest = difflib.get_close_matches(str(kind), KINDS, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(KINDS)}"
    raise ConfigError(f"timing.kind: unknown {kind!r}; {hint}")


def _needed(key: str, value: str | None, kind: str) -> str:
    if value is None:
        raise ConfigError(f"{key}: missing; `timing: {{kind: {kind}}}` needs it")
    return value


def _roofline(
    timing: TimingSettings, model: str, hardware: str, engine: EngineSettings
) -> StepTimeModel:
    from dynosim.timing.architecture import model_shape, require_divisible
    from dynosim.timing.catalogue import model_entry
    from dynosim.timing.hardware import hardware_sheet
    from dynosim.timing.roofline import RooflineModel

    entry = model_entry(model)
    shape = model_shape(entry)
    require_divisible(shape, engine.tensor_parallel)
    return RooflineModel(
        shape,
        hardware_sheet(hardware),
        tensor_parallel=engine.tensor_parallel,
        quantisation=engine.quantization,
        kv_element_bytes=1.0 if (engine.kv_cache_dtype or "auto").startswith("fp8") else 2.0,
        step_overhead_ms=getattr(timing, "step_overhead_ms", None) or 0.0,
        name=entry.name,
    )
