"""What is believed of a deployment's step times before its log is looked at.

With a model and hardware, the tables (or the roofline) give the matrix products over tokens and the
slopes of attention, also of decodes beside prompts, and `host_times` the host's share. Without,
everything starts from the log's own extremes and may move far.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from dynosim.build.timing import blind_timing
from dynosim.errors import ConfigError, DynosimError
from dynosim.fit.deployment import Deployment
from dynosim.fit.measurements import Clock, Measurements
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.fitted import FACTOR_NAMES, Curve, Fit, FittedParameters
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

PROMPT_OVERHEAD_MS = 1.0
"""Host time that a step with prompts adds, where a fit starts; as rough."""

_EAGER_SPREAD_MS = 5.0
"""Without CUDA graphs much depends on how fast the host launches kernels; a round number."""

_CURVE_NODES = np.unique(
    np.concatenate([[1, 2, 4], np.arange(8, 512, 8), np.arange(512, 16385, 32)])
)
_BATCH_NODES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 512)
_REFERENCE_BATCH = 64
_SHORT, _LONG = 300, 1500  # mean contexts between which a slope is taken
_BENT_WITH_TABLES, _BENT_WITHOUT = 0.05, 0.1
"""By how much the products of some token count may lie off the curve: one standard deviation."""
_ADDITIVE, _OVERLAPPING = 1.0, 2.5
"""Knees without tables: reading weights and computing follow each other (on CPUs), or overlap."""
_PROMPT_PROBE = (2048, 4096)  # new tokens, cached tokens


@dataclass(frozen=True, slots=True)
class Prior:
    """Where a fit starts, and by how much each free parameter may move (one standard deviation)."""

    fit: Fit
    spread: Mapping[str, float]
    source: str
    notes: tuple[str, ...] = field(default=())
    knees: tuple[float, ...] = ()  # sharpness of the soft maximum to choose from; empty: the fit's

    def with_all_knees(self) -> list["Prior"]:
        """This prior, once for each knee."""
        return [self.with_knee(knee) for knee in self.knees or (self.fit.knee,)]

    def with_knee(self, knee: float) -> "Prior":
        """This prior, with one knee."""
        return replace(self, fit=replace(self.fit, knee=knee), knees=())


def table_timing(deployment: Deployment, clock: Clock) -> StepTimeModel | None:
    """What is believed of the deployment blind; None without a model and a GPU.

    On the engine's clock there is no way to a client. Raises: ConfigError if a name is unknown to
    tables and roofline.
    """
    outside_ms = 0.0 if clock == "engine" else None
    return _blind(deployment, step_overhead_ms=None, outside_ms=outside_ms)


def device_timing(deployment: Deployment) -> StepTimeModel | None:
    """The same without host and client. Raises: as `table_timing`."""
    return _blind(deployment, step_overhead_ms=0.0, outside_ms=0.0)


def _blind(
    deployment: Deployment, *, step_overhead_ms: float | None, outside_ms: float | None
) -> StepTimeModel | None:
    if deployment.model is None or deployment.hardware is None or deployment.is_cpu:
        return None
    return blind_timing(
        model=deployment.model,
        hardware=deployment.hardware,
        engine=deployment.engine,
        step_overhead_ms=step_overhead_ms,
        ingress_ms=outside_ms,
        egress_ms=outside_ms,
        graph_sizes=deployment.graph_sizes,
    )


def prior_of(deployment: Deployment, measured: Measurements) -> Prior:
    """The prior of a log.

    A model that only the set-up names may be unknown, since an engine has run it: the log has to do
    then, and a note says so. Raises: ConfigError if a model or hardware that the user has given is
    not known.
    """
    try:
        timing = device_timing(deployment)
    except DynosimError as error:
        if deployment.is_model_given or not _is_about_model(deployment):
            raise
        prior = _prior_of_log(deployment, measured)
        return replace(prior, notes=(*prior.notes, f"nothing known but the log: {error}"))
    if timing is None:
        return _prior_of_log(deployment, measured)
    return _prior_of_tables(timing, deployment, measured)


def _is_about_model(deployment: Deployment) -> bool:
    """Whether it is not the hardware that has no step times."""
    try:
        hardware_sheet(deployment.hardware or "")
    except ConfigError:
        return False
    return True


def _prior_of_tables(
    timing: StepTimeModel, deployment: Deployment, measured: Measurements
) -> Prior:
    engine = deployment.engine
    per_context = max(_context_slope(timing, _REFERENCE_BATCH), 1e-9)
    batches = [n for n in _BATCH_NODES if n < engine.max_num_seqs]
    batches.append(max(engine.max_num_seqs, 2))
    by_batch = tuple((n, max(_context_slope(timing, n), 0.0) / per_context) for n in batches)
    per_pair = _pair_slope(timing, engine.max_num_batched_tokens)
    curve, prompt_ms = _token_curve(
        timing, per_pair, engine.max_num_seqs, engine.max_num_batched_tokens
    )
    usual = table_timing(deployment, measured.clock)
    assert usual is not None, "with tables there is a model and a GPU"
    host_ms = _host_ms(timing, usual, engine.max_num_seqs)
    mixed = _mixed_slope(timing, engine.max_num_seqs)
    parameters = FittedParameters(
        overhead_ms=host_ms,
        prompt_step_ms=PROMPT_OVERHEAD_MS + prompt_ms,
        per_decode_ms=0.01,
        per_context_token_ms=per_context,
        mixed_context_token_ms=mixed,
        per_pair_ms=per_pair,
        ingress_ms=_first_ingress_ms(measured),
    )
    spread = {
        "overhead_ms": 2.0 * host_ms + (_EAGER_SPREAD_MS if deployment.is_eager else 0.0),
        "curve_scale": 0.15,
        **dict.fromkeys(FACTOR_NAMES, _BENT_WITH_TABLES),
        "prompt_step_ms": PROMPT_OVERHEAD_MS + 0.5 * prompt_ms,
        "per_decode_ms": 0.02,
        "per_context_token_ms": 0.2 * parameters.per_context_token_ms,
        "mixed_context_token_ms": 0.4 * max(mixed, per_context),
        "per_pair_ms": 0.3 * parameters.per_pair_ms,
    }
    return Prior(
        Fit(
            parameters=parameters,
            token_curve=curve,
            context_curve=by_batch,
            graph_sizes=deployment.graph_sizes,
        ),
        spread | _ingress_spread(measured),
        source=timing.description,
        notes=timing.notes,
    )


def _token_curve(
    timing: StepTimeModel, per_pair_ms: float, most_decodes: int, most_tokens: int
) -> tuple[Curve, float]:
    """What steps of so many tokens take without contexts, and what one with prompts takes on top.

    Kernels of prompts cost something however short they are, so steps that only decode are asked as
    such; from the largest of these on, prompts tell how a step grows.
    """
    nodes = [int(n) for n in _CURVE_NODES if n < most_tokens] + [most_tokens]
    joint = max(n for n in nodes if n <= most_decodes or n == nodes[0])

    def prompt(tokens: int) -> float:
        pairs_ms = per_pair_ms * tokens * (tokens + 1) / 2
        return timing.step_ms(StepShape.of_prompts(1, tokens)) - pairs_ms

    def decode(batch: int) -> float:
        contexts_ms = _context_slope(timing, batch) * batch * _SHORT
        return max(timing.step_ms(StepShape.of_decodes(batch, batch * _SHORT)) - contexts_ms, 1e-6)

    highest = decode(joint)
    fixed_ms = max(prompt(joint) - highest, 0.0)
    curve = [(n, decode(n) if n <= joint else max(prompt(n) - fixed_ms, highest)) for n in nodes]
    return tuple(curve), fixed_ms


def _pair_slope(timing: StepTimeModel, most_tokens: int) -> float:
    """ms of one prompt token attending to one cached token, in a chunk of usual size."""
    new = min(most_tokens, _PROMPT_PROBE[0])
    cached = _PROMPT_PROBE[1]
    behind_ms = timing.step_ms(StepShape.of_prompts(1, new, cached))
    longer_ms = behind_ms - timing.step_ms(StepShape.of_prompts(1, new))
    return max(longer_ms / (new * cached), 0.0)


def _context_slope(timing: StepTimeModel, batch: int) -> float:
    """ms per token of context in decode steps of so many sequences."""
    longer = timing.step_ms(StepShape.of_decodes(batch, batch * _LONG))
    shorter = timing.step_ms(StepShape.of_decodes(batch, batch * _SHORT))
    return (longer - shorter) / (batch * (_LONG - _SHORT))


def _host_ms(device: StepTimeModel, usual: StepTimeModel, most_decodes: int) -> float:
    """What the host adds to a decode step, where it adds most: to that of one, or of usual size."""
    batches = (1, min(most_decodes, _REFERENCE_BATCH))
    steps = [StepShape.of_decodes(batch, batch * _SHORT) for batch in batches]
    return max(*(usual.step_ms(step) - device.step_ms(step) for step in steps), 1e-3)


def _mixed_slope(timing: StepTimeModel, most_decodes: int) -> float:
    """ms per token of context that decodes take more in a step with a prompt."""
    batch = max(min(most_decodes - 1, _REFERENCE_BATCH), 1)
    longer = timing.step_ms(StepShape(1, 1, 0, batch, batch * _LONG))
    shorter = timing.step_ms(StepShape(1, 1, 0, batch, batch * _SHORT))
    slope = (longer - shorter) / (batch * (_LONG - _SHORT))
    return max(slope - _context_slope(timing, batch), 0.0)


def _prior_of_log(deployment: Deployment, measured: Measurements) -> Prior:
    """Magnitudes from the log: the fastest decode step, and first tokens over prompt lengths."""
    gaps_ms = measured.decode_ms / np.maximum(measured.output_tokens - 1, 1)
    gaps_ms = gaps_ms[measured.output_tokens > 1]
    step_ms = float(np.percentile(gaps_ms, 5)) if len(gaps_ms) else float(measured.ttft_ms.min())
    per_token = max(_prompt_slope(measured), step_ms / 2000)
    contexts = float((measured.input_tokens + measured.output_tokens / 2).mean())
    parameters = FittedParameters(
        overhead_ms=0.2 * step_ms,
        weights_ms=0.6 * step_ms,
        per_token_ms=per_token,
        prompt_step_ms=0.05 * step_ms,
        per_decode_ms=0.002 * step_ms,
        per_context_token_ms=0.004 * step_ms / contexts,
        mixed_context_token_ms=0.002 * step_ms / contexts,
        per_pair_ms=0.1 * per_token / contexts,
        ingress_ms=_first_ingress_ms(measured),
    )
    spread = {
        name: getattr(parameters, name)
        for name in (
            "overhead_ms",
            "weights_ms",
            "per_token_ms",
            "prompt_step_ms",
            "per_decode_ms",
            "per_context_token_ms",
            "mixed_context_token_ms",
            "per_pair_ms",
        )
    }
    spread |= dict.fromkeys(FACTOR_NAMES, _BENT_WITHOUT)
    return Prior(
        Fit(parameters=parameters, graph_sizes=deployment.graph_sizes),
        spread | _ingress_spread(measured),
        source="the log's own extremes",
        knees=(_ADDITIVE,) if deployment.is_cpu else (_ADDITIVE, _OVERLAPPING),
    )


def _prompt_slope(measured: Measurements) -> float:
    """ms of first token per prompt token, along the lower edge of the cloud (little queueing)."""
    order = np.argsort(measured.input_tokens)
    groups = [group for group in np.array_split(order, 8) if len(group)]
    tokens = np.array([measured.input_tokens[group].mean() for group in groups])
    fastest = np.array([np.percentile(measured.ttft_ms[group], 10) for group in groups])
    if np.ptp(tokens) < 1:
        return float(fastest.min() / max(tokens.mean(), 1))
    return float(np.polyfit(tokens, fastest, 1)[0])


def _first_ingress_ms(measured: Measurements) -> float:
    """Clients see the way in and out; on the engine's clock it does not show."""
    return 0.2 * float(np.percentile(measured.ttft_ms, 5)) if measured.clock == "clients" else 0.0


def _ingress_spread(measured: Measurements) -> dict[str, float]:
    if measured.clock == "engine":
        return {}
    return {"ingress_ms": 0.5 * float(np.percentile(measured.ttft_ms, 5)) + 1e-3}
