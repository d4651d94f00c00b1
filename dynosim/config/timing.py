"""The `timing:` section: how long an engine step takes, by kind of model."""

from typing import Annotated, Literal

from pydantic import Field

from dynosim.config.base import NotNegative, PositiveMs, Section


class FixedTiming(Section):
    """A step with prefill work takes `prefill_ms`, any other `decode_ms`."""

    kind: Literal["fixed"]
    prefill_ms: PositiveMs
    decode_ms: PositiveMs


class LinearTiming(Section):
    """base + a * prefill tokens + b * decoding sequences + c * tokens of context."""

    kind: Literal["linear"]
    base_ms: NotNegative = 0.0
    per_prefill_token_ms: NotNegative = 0.0
    per_decode_ms: NotNegative = 0.0
    per_context_token_ms: NotNegative = 0.0


class PolynomialTiming(Section):
    """The formulas of Dynamo's mocker, for comparisons with it."""

    kind: Literal["polynomial"]


class ProfileTiming(Section):
    """A grid of measured points, interpolated."""

    kind: Literal["profile"]
    file: str


class FittedTiming(Section):
    """A physical form with constants fitted by `dynosim calibrate`."""

    kind: Literal["fitted"]
    file: str


class AiconfiguratorTiming(Section):
    """Silicon-measured tables of aiconfigurator-core."""

    kind: Literal["aiconfigurator"]
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    backend_version: str | None = None  # None: the tables' current one
    step_overhead_ms: NotNegative = 0.0  # host time between two steps


class RooflineTiming(Section):
    """Arithmetic and bandwidth limits of a data sheet, plus overhead."""

    kind: Literal["roofline"]
    step_overhead_ms: NotNegative = 0.0  # host time between two steps


TimingConfig = Annotated[
    FixedTiming
    | LinearTiming
    | PolynomialTiming
    | ProfileTiming
    | FittedTiming
    | AiconfiguratorTiming
    | RooflineTiming,
    Field(discriminator="kind"),
]
NEEDS_MODEL = ("aiconfigurator", "roofline")
