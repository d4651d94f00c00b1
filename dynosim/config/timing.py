"""The `timing:` section: how long an engine step takes, by kind of model."""

from typing import Annotated, Literal

from pydantic import Field

from dynosim.config.base import NotNegative, PositiveMs, Section


class _Timing(Section):
    """What all kinds have: the way between a client and the engine."""

    ingress_ms: NotNegative | None = None
    """Time from a request's sending until the engine's scheduler sees it: HTTP, tokenizer; null: of
    `aiconfigurator` and `roofline` what the GPU's machine usually takes, of `fitted` the file's, of
    others 0. State 0 for an engine's own clock."""
    egress_ms: NotNegative | None = None
    """Time from a token's making until its client has it: detokenizer, streaming; null: as with
    `ingress_ms`."""


class FixedTiming(_Timing):
    """A step with prefill work takes `prefill_ms`, any other `decode_ms`."""

    kind: Literal["fixed"]
    """Which model of step times."""
    prefill_ms: PositiveMs
    """Time of a step that computes prompt tokens."""
    decode_ms: PositiveMs
    """Time of a step that only decodes."""


class LinearTiming(_Timing):
    """base + a * prefill tokens + b * decoding sequences + c * tokens of context."""

    kind: Literal["linear"]
    """Which model of step times."""
    base_ms: NotNegative = 0.0
    """Time of every step."""
    per_prefill_token_ms: NotNegative = 0.0
    """Further time for each prompt token that a step computes."""
    per_decode_ms: NotNegative = 0.0
    """Further time for each sequence that decodes in a step."""
    per_context_token_ms: NotNegative = 0.0
    """Further time for each token of context that decoding sequences read in a step."""


class PolynomialTiming(_Timing):
    """The formulas of Dynamo's mocker, for comparisons with it."""

    kind: Literal["polynomial"]
    """Which model of step times."""


class ProfileTiming(_Timing):
    """A grid of measured points, interpolated."""

    kind: Literal["profile"]
    """Which model of step times."""
    file: str
    """File with the measured grid; sought from here, the run file's folder and its parent."""


class FittedTiming(_Timing):
    """A physical form with constants fitted by `dynosim calibrate`."""

    kind: Literal["fitted"]
    """Which model of step times."""
    file: str
    """File that `dynosim calibrate` wrote; sought from the current folder, the run file's and its
    parent."""


class AiconfiguratorTiming(_Timing):
    """Silicon-measured tables of aiconfigurator-core."""

    kind: Literal["aiconfigurator"]
    """Which model of step times."""
    backend: Literal["vllm", "sglang", "trtllm"] = "vllm"
    """Engine whose kernels were measured."""
    backend_version: str | None = None
    """Version of that engine whose measurements are taken; null: `engine.version` for vllm, else
    the newest that the tables know."""
    trust_tables: bool = False
    """Whether measured times are used that are more than twice over or under the roofline."""
    step_overhead_ms: NotNegative | None = None
    """Host time that every step takes on top of the device's; null: what the GPU's machine usually
    takes, by engine version and scheduling, as far as the device does not hide it."""


class RooflineTiming(_Timing):
    """Arithmetic and bandwidth limits of a data sheet, plus overhead."""

    kind: Literal["roofline"]
    """Which model of step times."""
    step_overhead_ms: NotNegative | None = None
    """Host time that every step takes on top of the device's; null: what the GPU's machine usually
    takes, by engine version and scheduling, as far as the device does not hide it."""


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
