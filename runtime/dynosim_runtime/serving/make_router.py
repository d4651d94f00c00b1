"""From a plan to the live router: the twin's settings, with hash indexes and a log on disk."""

from collections.abc import Iterable
from pathlib import Path

from dynosim.build.engine import prepare
from dynosim.build.routing import routing_spec
from dynosim.config.router import RouterConfig
from dynosim.config.schema import RunConfig
from dynosim.indexer.base import BlockEvent
from dynosim.indexer.make import AnyExtentIndex, IndexSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.recorder import RouterLog
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.spec import RoutingSpec, hash_index_spec
from dynosim.routerlog.rotating import RotatingLog
from dynosim.timing.prefill_estimate import StepTimeEstimator


class LiveRouting:
    """The router of a plan, and its log in folder `log_name` of `out` if the plan keeps one.

    `must_follow`: what the workers have cached is asked for besides, whatever routing looks at.

    `inputs` is the router, or the log through which it gets all inputs.

    Raises: ConfigError if a policy cannot be imported or the log cannot be written; and, where the
    router has to know the engine's step times or cache size, as `build.engine.prepare` does.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path | None,
        *,
        log_name: str = "router",
        must_follow: bool = False,
    ) -> None:
        spec, index, self._estimator = _spec(config)
        self.block_size = config.engine.block_size
        self.follows_events = spec.follows_caches or (must_follow and config.router.use_kv_events)
        self.tracks_output = config.router.track_output_blocks
        self._log: RotatingLog | None = None
        self.inputs: KvRouter[BlockEvent] | RouterLog[BlockEvent]
        if out is None or not config.live.router_log:
            settings = spec.settings
            policy = None if spec.policy is None else spec.policy(settings, settings.seed)
            made = index.make()
            assert not isinstance(made, AnyExtentIndex)  # `hash_index_spec` asks for none
            self.inputs = KvRouter(settings, made, policy=policy, estimator=spec.estimator)
            return
        self._log = RotatingLog(
            out / log_name,
            max_bytes=config.live.router_log_mib << 20,
            max_files=config.live.router_log_files,
        )
        self.inputs = self._log.open(
            spec.settings, index, policy=config.router.policy, estimator=spec.estimator
        )

    def follow_speedups(self, speedups: Iterable[float]) -> None:
        """Simulated workers compute so many times faster than the plan says: so does load decay.

        The slowest counts; none changes nothing. Decisions already made stay.
        """
        slowest = min(speedups, default=None)
        if slowest is not None and self._estimator is not None:
            self._estimator.speedup = slowest

    @property
    def is_log_failing(self) -> bool:
        """Whether there is to be a log that cannot be written at the moment."""
        return self._log is not None and self._log.failure is not None

    def maintain(self) -> None:
        """Keep the log going; call between the router's inputs."""
        if self._log is not None:
            self._log.maintain()

    def close(self) -> None:
        """Finish the log."""
        if self._log is not None:
            self._log.close()


class HurriedEstimator:
    """Prefill times on the frontend's clock, of engines that simulate faster than real time."""

    def __init__(self, estimator: PrefillEstimator) -> None:
        self.speedup = 1.0
        self._estimator = estimator

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        """See `PrefillEstimator`."""
        predicted_ms = self._estimator.predict_ms(new_tokens, cached_tokens)
        return None if predicted_ms is None else predicted_ms / self.speedup


def _spec(config: RunConfig) -> tuple[RoutingSpec, IndexSpec, HurriedEstimator | None]:
    """How the plan routes, the index that it needs, and what predicts prefill times."""
    estimator, capacity_blocks = None, None
    if _depends_on_engine(config.router):
        prepared = prepare(config)
        estimator = HurriedEstimator(
            StepTimeEstimator(prepared.timing, config.engine.max_num_batched_tokens)
        )
        capacity_blocks = prepared.engine.usable_blocks
    spec = routing_spec(
        config.router,
        block_size=config.engine.block_size,
        seed=config.seed,
        estimator=estimator,
        has_slower_tiers=config.cluster.tiers is not None,
    )
    return spec, hash_index_spec(spec, capacity_blocks), estimator


def _depends_on_engine(router: RouterConfig) -> bool:
    """Whether prefill load decays by step times, or guesses are bounded by the cache's size."""
    is_bounded = not router.use_kv_events and router.approximate_cache_policy == "lru"
    return router.prefill_load_model == "timing" or is_bounded
