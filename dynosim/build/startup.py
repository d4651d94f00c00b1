"""From the `cluster.startup` section to how the workers of a pool start."""

from math import ceil

from dynosim.config.schema import RunConfig
from dynosim.config.startup import (
    CheckpointConfig,
    PhaseTime,
    PhaseTimeConfig,
    StartupConfig,
    WeightsConfig,
)
from dynosim.errors import ConfigError
from dynosim.workers.startup import (
    NO_TIME,
    CheckpointSpec,
    Duration,
    ReadSpec,
    StartupSpec,
    WeightsSpec,
)
from dynosim.workers.startup_presets import CHECKPOINTS, STARTS, WEIGHTS

BYTES_PER_GB = 1e9
_TIMES = (
    "schedule", "node", "image", "boot", "compile", "compile_cached", "warm_up", "probe"
)  # fmt: skip


def starts_cold(config: RunConfig) -> bool:
    """Whether the first workers of a pool start when the run does."""
    section = config.cluster.startup
    return section is not None and section.initial == "starting"


def startup_spec(config: RunConfig) -> StartupSpec | None:
    """How a worker of one pool starts; None: in no time.

    Raises: ConfigError if the size of the weights is not known, or for a checkpoint of several
    nodes.
    """
    section = config.cluster.startup
    if section is None:
        return None
    preset = None if section.preset is None else STARTS[section.preset]
    times = {
        phase: duration(
            getattr(section, f"{phase}_s"),
            NO_TIME if preset is None else preset.times.get(phase, NO_TIME),
        )
        for phase in _TIMES
    }
    weights, checkpoint = section.weights, section.checkpoint
    if preset is not None and weights is None:
        weights = WeightsConfig(preset=preset.weights)
    if preset is not None and checkpoint is None and preset.checkpoint is not None:
        checkpoint = CheckpointConfig(preset=preset.checkpoint)
    cache = section.compile_cache or (None if preset is None else preset.compile_cache)
    try:
        return StartupSpec(
            **times,
            weights=None if weights is None else weights_spec(config, weights),
            checkpoint=None
            if checkpoint is None
            else _checkpoint_spec(config, checkpoint, weights),
            compile_cache=cache or "none",
            nodes=_nodes(config, section),
        )
    except ConfigError as error:
        raise ConfigError(f"cluster.startup.{error}") from None


def duration(stated: PhaseTime, otherwise: Duration = NO_TIME) -> Duration:
    """A time that a key states in seconds."""
    if stated is None:
        return otherwise
    if not isinstance(stated, PhaseTimeConfig):
        return Duration(stated * 1e3)
    if stated.mean is not None and stated.p95 is not None:
        return Duration(stated.mean * 1e3, stated.p95 * 1e3)
    assert stated.min is not None and stated.max is not None
    return Duration.between(stated.min * 1e3, stated.max * 1e3)


def weights_spec(config: RunConfig, section: WeightsConfig) -> WeightsSpec:
    """Where the weights come from, and how large they are."""
    preset = None if section.preset is None else WEIGHTS[section.preset]
    node_gb_s, total_gb_s = section.read_gb_s, section.total_read_gb_s
    if section.streams is not None and section.stream_gb_s is not None:
        of_streams = section.streams * section.stream_gb_s
        node_gb_s = of_streams if node_gb_s is None else min(node_gb_s, of_streams)
    first_byte_ms, peer_gb_s = section.first_byte_ms, section.peer_gb_s
    receivers = section.receivers_per_source
    if preset is not None:
        # A stated rate of all is of another store than the preset's: a node may get all of it.
        if node_gb_s is None:
            node_gb_s = preset.node_gb_s if total_gb_s is None else total_gb_s
        total_gb_s = preset.total_gb_s if total_gb_s is None else total_gb_s
        first_byte_ms = preset.first_byte_ms if first_byte_ms is None else first_byte_ms
        peer_gb_s = preset.peer_gb_s if peer_gb_s is None else peer_gb_s
        receivers = preset.receivers_per_source if receivers is None else receivers
    node_gb_s = total_gb_s if node_gb_s is None else node_gb_s
    assert node_gb_s is not None
    return WeightsSpec(
        num_bytes=_weight_bytes(config, section),
        storage=ReadSpec(
            node_gb_s=node_gb_s, total_gb_s=total_gb_s, first_byte_ms=first_byte_ms or 0.0
        ),
        peer_gb_s=peer_gb_s,
        receivers_per_source=receivers,
    )


def _checkpoint_spec(
    config: RunConfig, section: CheckpointConfig, weights: WeightsConfig | None
) -> CheckpointSpec:
    preset = None if section.preset is None else CHECKPOINTS[section.preset]
    node_gb_s, total_gb_s = section.read_gb_s, section.total_read_gb_s
    if node_gb_s is None:
        node_gb_s = total_gb_s if preset is None else preset.node_gb_s
    assert node_gb_s is not None
    size_gb, write_gb_s, restore = section.size_gb, section.write_gb_s, NO_TIME
    if preset is not None:
        restore = preset.restore
        write_gb_s = preset.write_gb_s if write_gb_s is None else write_gb_s
        if size_gb is None:
            weights_gb = _weight_bytes(config, weights) / BYTES_PER_GB
            size_gb = preset.fixed_gb + preset.per_weights * weights_gb
    assert size_gb is not None
    return CheckpointSpec(
        num_bytes=round(size_gb * BYTES_PER_GB),
        storage=ReadSpec(node_gb_s=node_gb_s, total_gb_s=total_gb_s),
        restore=duration(section.restore_s, restore),
        write_gb_s=None if section.exists else write_gb_s,
        waits=section.policy == "wait_for_checkpoint",
    )


def _weight_bytes(config: RunConfig, section: WeightsConfig | None) -> int:
    """Of a whole worker: each weight is read once, however many GPUs then hold it."""
    if section is not None and section.size_gb is not None:
        return round(section.size_gb * BYTES_PER_GB)
    if config.model_source is None:
        raise ConfigError(
            "weights.size_gb: missing; no model is named that it would follow from (state it, or "
            "add `model: Qwen/Qwen3-32B` or another known name)"
        )
    from dynosim.silicon.catalogue import model_entry
    from dynosim.timing.architecture import model_shape
    from dynosim.timing.weights import Gpus, gpu_weights

    entry = model_entry(config.model_source)
    parts = gpu_weights(entry, model_shape(entry), Gpus(), config.engine.quantization)
    return sum(size for part, size in parts.items() if part != "rotary")  # that is in no file


def _nodes(config: RunConfig, section: StartupConfig) -> int:
    """Nodes of a worker: as stated, or as many as its GPUs take."""
    if section.nodes_per_worker is not None:
        return section.nodes_per_worker
    if config.hardware_source is None:
        return 1
    from dynosim.silicon.hardware import hardware_sheet

    sheet = hardware_sheet(config.hardware_source)
    return ceil(config.engine.gpus_per_worker / sheet.gpus_per_node)
