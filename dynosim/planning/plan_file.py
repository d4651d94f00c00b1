"""A run file as a comparison reads it: it may state several controllers, each its own run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.build.live_control import pool_sizes
from dynosim.config.aliases import RUN_ALIASES, use_our_names
from dynosim.config.cluster import POOL_ROLES, ClusterConfig
from dynosim.config.loading import run_config
from dynosim.config.overrides import apply_overrides
from dynosim.config.schema import CONTROLLERS, RunConfig
from dynosim.config.yaml_source import Document, read_document
from dynosim.errors import ConfigError

Data = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlanFile:
    """The file's document, and what all its runs share: the load, the engine, the SLA.

    `base` is the configuration under the first controller that is stated, or under a planner.
    """

    document: Document
    base: RunConfig
    sla_source: str

    def states(self, controller: str) -> bool:
        """Whether the file has a section of a controller."""
        return controller in self.document.data

    def under(self, controller: str, section: Data | None = None) -> RunConfig:
        """The run under one controller: as the file states it, or as `section` does.

        Raises: ConfigError for a section that makes no sense.
        """
        stated = self.document.data.get(controller) if section is None else section
        return _run_under(self.document, controller, stated)

    def fixed(self, sizes: Sequence[int]) -> RunConfig:
        """The run on so many workers of each pool, which nobody changes."""
        cluster = self.sized(sizes)
        startup: Data = {"startup": _at_start(cluster.startup)}
        if cluster.is_disagg:
            for role in POOL_ROLES:
                pool = cluster.pool(role)
                startup[role] = pool.model_copy(update={"startup": _at_start(pool.startup)})
        return self.base.model_copy(
            update=dict.fromkeys((*CONTROLLERS, "scaling"))
            | {"cluster": cluster.model_copy(update=startup)}
        )

    def sized(self, sizes: Sequence[int]) -> ClusterConfig:
        """The cluster that begins with so many workers of each pool."""
        cluster = self.base.cluster
        if not cluster.is_disagg:
            return cluster.model_copy(update={"workers": sizes[0]})
        return cluster.model_copy(
            update={
                role: cluster.pool(role).model_copy(update={"workers": size})
                for role, size in zip(POOL_ROLES, sizes, strict=True)
            }
        )

    @property
    def pools(self) -> tuple[str, ...]:
        """What the pools are called, in the order of their sizes."""
        return tuple(pool_sizes(self.base))


def read_plan_file(path: Path, overrides: Sequence[str]) -> PlanFile:
    """The file at `path`, changed by the overrides. Raises: ConfigError."""
    document = read_document(path)
    use_our_names(document, RUN_ALIASES)
    apply_overrides(document, overrides, RUN_ALIASES)
    return plan_file(document)


def plan_file(document: Document) -> PlanFile:
    """The document, every stated controller checked. Raises: ConfigError."""
    stated = [name for name in CONTROLLERS if document.data.get(name) is not None]
    configs = [_run_under(document, name, document.data[name]) for name in stated]
    base = configs[0] if configs else _run_under(document, "planner", {})
    _check_base(document.name, base)
    source = "sla:"
    if base.sla is None:
        source = "planner:"
        document.data["sla"] = _sla_of_planner(document)
        base = plan_file(document).base
    return PlanFile(document, base, source)


def _run_under(document: Document, controller: str, section: Any) -> RunConfig:
    data = {key: value for key, value in document.data.items() if key not in CONTROLLERS}
    under = Document({**data, controller: section}, document.name, document.folder, document.places)
    return run_config(under)


def _sla_of_planner(document: Document) -> Mapping[str, Any]:
    """The targets of a planner that aims at latencies, as bounds."""
    planner = document.data.get("planner") or {}
    sla = {key: planner[key] for key in ("ttft_ms", "itl_ms") if key in planner}
    if planner.get("optimization_target") != "sla" or not sla:
        raise ConfigError(
            f"{document.name}: sla: missing; without bounds nothing says what is enough "
            "(add `sla: {ttft_ms: 2000, itl_ms: 50}`)"
        )
    return sla


def _check_base(name: str, base: RunConfig) -> None:
    """Refuse what no two controllers can be compared on. Raises: ConfigError."""
    workload = base.workload
    for is_wrong, key, why, remedy in (
        (workload.concurrency is not None, "workload.concurrency",
         "a closed loop offers what is served, whatever the cluster", "give a load by time"),
        (workload.has_warm_up, "workload.warm_up_requests or warm_up_s",
         "what scales is judged from its start on", "remove it"),
        (base.cluster.cpu_workers > 0, "cluster.cpu_workers",
         "clusters of equal workers are compared", "remove it"),
    ):  # fmt: skip
        if is_wrong:
            raise ConfigError(f"{name}: {key}: {why} ({remedy})")


def _at_start(startup: Any) -> Any:
    """How workers start, of a cluster whose workers are those of the start."""
    return None if startup is None or startup.initial == "ready" else startup
