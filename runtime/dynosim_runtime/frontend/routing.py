"""From a plan to the live router: the twin's settings, with hash indexes and a log on disk."""

from pathlib import Path

from dynosim.cluster.routing import hash_index_spec
from dynosim.config.schema import RunConfig
from dynosim.replay_log import FORMAT, LogHeader
from dynosim.rotating_log import RotatingLog
from dynosim.router.kv_router import KvRouter
from dynosim.routing_config import routing_spec


class LiveRouting:
    """The router of a plan, and its log under `out`/router if the plan keeps one.

    Raises: ConfigError if a policy cannot be imported or the log cannot be written.
    """

    def __init__(self, config: RunConfig, out: Path | None) -> None:
        spec = routing_spec(config.router, block_size=config.engine.block_size, seed=config.seed)
        blocks = config.engine.num_gpu_blocks
        index = hash_index_spec(spec, blocks if isinstance(blocks, int) else None)
        self.block_size = config.engine.block_size
        self.follows_events = spec.follows_caches
        self.tracks_output = config.router.track_output_blocks
        self._log: RotatingLog | None = None
        policy = config.router.policy
        if out is None or not config.live.router_log:
            self.router: KvRouter = LogHeader(FORMAT, spec.settings, index, policy).make_router()
            return
        self._log = RotatingLog(
            out / "router",
            max_bytes=config.live.router_log_mib << 20,
            max_files=config.live.router_log_files,
        )
        self.router = self._log.open(spec.settings, index, policy=policy)

    def maintain(self) -> None:
        """Keep the log going; call between the router's inputs."""
        if self._log is not None:
            self._log.maintain()

    def close(self) -> None:
        """Finish the log."""
        if self._log is not None:
            self._log.close()
