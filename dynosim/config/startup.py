"""The `cluster.startup` section: how a worker starts, phase by phase."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Tag, model_validator

from dynosim.config.base import Count, NotNegative, Rate, Rule, Section, check_rules
from dynosim.workers.startup import P95_PER_MEAN_MAX, CompileCache
from dynosim.workers.startup_presets import STARTS, CheckpointKind, Start, WeightsPlace


class PhaseTimeConfig(Section):
    """A time that is drawn for each worker: by mean and p95 (lognormal), or evenly in a range."""

    mean: NotNegative | None = None
    """Mean of the time; with `p95`. Unit: s."""
    p95: NotNegative | None = None
    """What 95 % of workers do not exceed. Unit: s."""
    min: NotNegative | None = None
    """Shortest time; with `max`. Unit: s."""
    max: NotNegative | None = None
    """Longest time. Unit: s."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        mean, p95, least, most = self.mean, self.p95, self.min, self.max
        both = (mean, p95) != (None, None) and (least, most) != (None, None)
        is_lognormal = mean is not None and p95 is not None
        is_even = least is not None and most is not None
        check_rules(
            [
                ("min", both, "stated beside mean and p95", "keep one of the two pairs"),
                ("mean", not both and not is_lognormal and not is_even,
                 "a time needs mean and p95, or min and max", "state both of a pair"),
                ("p95", is_lognormal and (p95 or 0) < (mean or 0), "less than the mean",
                 "raise it"),
                ("p95", is_lognormal and (p95 or 0) > P95_PER_MEAN_MAX * (mean or 0),
                 f"more than {P95_PER_MEAN_MAX:.2f} times the mean, as no lognormal time is",
                 "lower it, or raise the mean"),
                ("max", is_even and (most or 0) < (least or 0), "less than min", "raise it"),
            ]
        )  # fmt: skip
        return self


def _form(value: Any) -> str | None:
    """How a time is written."""
    if value is None:
        return "(none)"
    is_section = isinstance(value, dict | PhaseTimeConfig)
    return "(section)" if is_section else "(number)"


if TYPE_CHECKING:
    PhaseTime = float | PhaseTimeConfig | None
else:
    PhaseTime = Annotated[
        Annotated[NotNegative, Tag("(number)")]
        | Annotated[PhaseTimeConfig, Tag("(section)")]
        | Annotated[None, Tag("(none)")],
        Discriminator(_form),
    ]


class WeightsConfig(Section):
    """Where the weights of a worker come from."""

    preset: WeightsPlace | None = None
    """A place to read from, or `p2p`, other workers' GPUs; null: stated by rates."""
    size_gb: NotNegative | None = None
    """What a worker reads, all its nodes together; null: follows from the model. Unit: GB."""
    read_gb_s: Rate | None = None
    """What one node gets from storage; null: as the preset has it, or all of `total_read_gb_s`.
    Unit: GB/s."""
    total_read_gb_s: Rate | None = None
    """What all nodes get together from storage that they share; null: as the preset has it, or
    nothing is shared. Unit: GB/s."""
    streams: Count | None = None
    """Streams with which a node reads from an object store; with `stream_gb_s`. Unit: streams."""
    stream_gb_s: Rate | None = None
    """What one stream brings; a node gets no more than `read_gb_s` all the same. Unit: GB/s."""
    first_byte_ms: NotNegative | None = None
    """Time before the first byte; null: as the preset has it."""
    peer_gb_s: Rate | None = None
    """What a node gets from, or sends to, nodes of other workers that have the weights. The first
    worker reads from storage, and others wait for it. Null: as the preset has it, or none are
    asked. Unit: GB/s."""
    receivers_per_source: Count | None = None
    """To how many a node sends at once; null: as the preset has it, or to all who ask. Unit:
    nodes."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        has_streams = self.streams is not None and self.stream_gb_s is not None
        has_one = (self.streams is None) != (self.stream_gb_s is None)
        rates = (self.read_gb_s, self.total_read_gb_s)
        has_storage = self.preset is not None or has_streams or any(rates)
        has_peers = self.peer_gb_s is not None or self.preset == "p2p"
        missing = "streams" if self.streams is None else "stream_gb_s"
        peers_only = self.peer_gb_s is not None
        check_rules(
            [
                (missing, has_one, "missing; one of streams and stream_gb_s says nothing",
                 "state both"),
                ("read_gb_s", not has_storage and not has_one and not peers_only,
                 "missing; no other rate is stated either",
                 "state it or total_read_gb_s, or add `preset: pvc` or another one"),
                ("read_gb_s", not has_storage and not has_one and peers_only,
                 "missing; the first worker has no other to read from",
                 "state what its storage gives, here or as total_read_gb_s"),
                ("receivers_per_source", self.receivers_per_source is not None and not has_peers,
                 "stated, but workers do not read from each other", "remove it, or add peer_gb_s"),
            ]
        )  # fmt: skip
        return self


class CheckpointConfig(Section):
    """The image of a running worker that others are restored from: they neither boot nor load,
    compile or warm up."""

    preset: CheckpointKind | None = None
    """How it is made and restored; null: stated by the keys below."""
    size_gb: NotNegative | None = None
    """Size of the image; null: as the preset has it for the model's weights. Unit: GB."""
    read_gb_s: Rate | None = None
    """What one node gets of it; null: as the preset has it, or all of `total_read_gb_s`. Unit:
    GB/s."""
    total_read_gb_s: Rate | None = None
    """What all nodes get together; null: nothing is shared. Unit: GB/s."""
    restore_s: PhaseTime = None
    """Time of a restore beside the reading; null: as the preset has it, or none. Unit: s."""
    exists: bool = True
    """Whether there is one from the start; else the first worker starts cold and makes it."""
    write_gb_s: Rate | None = None
    """Rate at which it is made; null: as the preset has it. Unit: GB/s."""
    policy: Literal["immediate", "wait_for_checkpoint"] = "immediate"
    """Whether those that come before it is made start cold too, or wait for it."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        has_none = self.preset is None
        check_rules(
            [
                ("read_gb_s", has_none and not (self.read_gb_s or self.total_read_gb_s),
                 "missing; no preset is stated either", "state it, or add `preset: snapshot`"),
                ("size_gb", has_none and self.size_gb is None,
                 "missing; no preset is stated either", "state it, or add `preset: snapshot`"),
                ("write_gb_s", not self.exists and has_none and self.write_gb_s is None,
                 "missing; the first worker has to make the checkpoint",
                 "state it, or add `preset: snapshot`"),
                ("write_gb_s", self.exists and self.write_gb_s is not None,
                 "stated, but there is a checkpoint from the start",
                 "remove it, or set exists: false"),
                ("policy", self.exists and self.policy != "immediate",
                 "stated, but there is a checkpoint from the start",
                 "remove it, or set exists: false"),
            ]
        )  # fmt: skip
        return self


class StartupConfig(Section):
    """How a worker starts, from its launch until it serves. What neither the preset nor a key says
    takes no time."""

    preset: Start | None = None
    """A start that was measured, whose times count where none is stated; null: none."""
    initial: Literal["ready", "starting"] = "ready"
    """Whether the run's first workers serve from its start, or start then; requests wait until one
    serves (of each pool, with `disagg`)."""
    schedule_s: PhaseTime = None
    """From the launch until a node is found. Unit: s."""
    node_s: PhaseTime = None
    """Until a new node has joined. Unit: s."""
    image_s: PhaseTime = None
    """Until the container's image is there. Unit: s."""
    boot_s: PhaseTime = None
    """Imports and the engine's processes. Unit: s."""
    weights: WeightsConfig | None = None
    """Where weights come from; null: as the preset has it, or they take no time."""
    compile_s: PhaseTime = None
    """Compilation, without a cache. Unit: s."""
    compile_cached_s: PhaseTime = None
    """The same from a cache. Unit: s."""
    compile_cache: CompileCache | None = None
    """Whether compiled code is found: by nobody (`none`), by those who compile after another worker
    of the pool has (`shared`), by all (`warm`); null: as the preset has it, or none."""
    warm_up_s: PhaseTime = None
    """Profiling, graph capture, first steps. Unit: s."""
    probe_s: PhaseTime = None
    """Until the readiness probe sees it. Unit: s."""
    checkpoint: CheckpointConfig | None = None
    """An image to restore workers from; null: as the preset has it, or none."""
    nodes_per_worker: Count | None = None
    """Nodes of a worker: each starts at its own pace up to its part of the weights, and the worker
    goes on when all have theirs; null: as many as its GPUs take, of the hardware's nodes. Unit:
    nodes."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_empty = all(
            getattr(self, key) is None
            for key in type(self).model_fields
            if key not in ("initial", "nodes_per_worker")
        )
        check_rules(
            [
                ("preset", is_empty, "missing; no phase is stated either",
                 "add `preset: vllm_cold` or another one, or `boot_s: 60`"),
                *self._compile_rules(),
                *((key, self._is_restored and getattr(self, key) is not None,
                   "stated, but workers are restored from a checkpoint that is there",
                   "remove it, or set checkpoint.exists: false")
                  for key in ("boot_s", "weights", "compile_s", "compile_cached_s",
                              "compile_cache", "warm_up_s")),
            ]
        )  # fmt: skip
        return self

    @property
    def _is_restored(self) -> bool:
        """Whether all workers come from a checkpoint."""
        if self.checkpoint is not None:
            return self.checkpoint.exists
        return self.preset is not None and STARTS[self.preset].checkpoint is not None

    def _compile_rules(self) -> list[Rule]:
        preset = None if self.preset is None else STARTS[self.preset]
        compiles = self.compile_s is not None or (preset is not None and "compile" in preset.times)
        knows_cached = self.compile_cached_s is not None or (
            preset is not None and "compile_cached" in preset.times
        )
        cache = self.compile_cache
        if cache is None:
            cache = "none" if preset is None else preset.compile_cache
        return [
            ("compile_cached_s", self.compile_cached_s is not None and cache == "none",
             "stated, but nobody finds compiled code", "set compile_cache: warm, or remove it"),
            ("compile_cached_s", cache != "none" and not knows_cached,
             f"missing; with compile_cache: {cache} it counts", "state it (0: no time)"),
            ("compile_s", self.compile_s is not None and cache == "warm",
             "stated, but all find compiled code", "set compile_cache: shared, or remove it"),
            ("compile_s", cache == "shared" and not compiles,
             "missing; the first worker compiles", "state it"),
        ]  # fmt: skip
