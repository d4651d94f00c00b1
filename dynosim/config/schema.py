"""The run file. Every field has its unit in its name.

A default stands once: here, or in the spec that is built from the section, from which it is taken.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from dynosim.config.autoscalers import ConcurrencyConfig, KedaConfig
from dynosim.config.base import RULES, PositiveMs, Rule, Section, check_rules, stated_in
from dynosim.config.cluster import POOL_ROLES, ClusterConfig, PoolRole
from dynosim.config.controllers import HpaConfig, PlannerConfig, ScalingConfig
from dynosim.config.cost import CostConfig
from dynosim.config.engine import EngineConfig
from dynosim.config.hardware import Hardware, NamedHardware
from dynosim.config.live import LiveConfig
from dynosim.config.router import RouterConfig
from dynosim.config.scenario import ScenarioEventConfig, scenario_rules
from dynosim.config.timing import NEEDS_MODEL, TimingConfig
from dynosim.config.workload import WorkloadConfig
from dynosim.timing.sampler import Sampling

CONTROLLERS = ("planner", "hpa", "keda", "concurrency")
"""Sections of which one at most decides how many workers there are."""


class SlaConfig(Section):
    """Bounds that a request must keep to count as good; a missing one is no bound."""

    ttft_ms: PositiveMs | None = None
    """Bound on the time from a request's arrival to its first token."""
    itl_ms: PositiveMs | None = None
    """Bound on the mean time between a request's output tokens (its TPOT)."""
    e2e_ms: PositiveMs | None = None
    """Bound on the time from a request's arrival to its last token."""


def is_path(name: str) -> bool:
    """Whether a model or hardware is given as a file or folder, not by its name."""
    return name.endswith((".json", ".yaml", ".yml")) or name.startswith((".", "/", "~"))


class RunConfig(Section):
    """One configuration of one simulated cluster under one workload."""

    name: str = ""
    """Name of the run, for titles and the folder of results."""
    model: str | None = None
    """Name of the model, or path of a Hugging Face config.json."""
    hardware: Hardware = None
    """Name of the GPU, or path of a data sheet (YAML); or a section that also states the link
    between the GPUs of a worker."""
    workload: WorkloadConfig
    """What is offered to the cluster."""
    engine: EngineConfig = EngineConfig.model_construct()
    """How every worker's engine schedules and what it holds."""
    timing: TimingConfig
    """How long an engine step takes."""
    cluster: ClusterConfig = ClusterConfig.model_construct()
    """Which workers there are."""
    router: RouterConfig = RouterConfig.model_construct()
    """Which worker serves a request, and when it may go."""
    planner: PlannerConfig | None = None
    """A planner that decides how many workers there are; null: none."""
    hpa: HpaConfig | None = None
    """An HPA that decides it; null: none."""
    keda: KedaConfig | None = None
    """KEDA, which decides it; null: none."""
    concurrency: ConcurrencyConfig | None = None
    """An autoscaler by requests in flight, which decides it; null: none."""
    scaling: ScalingConfig | None = None
    """What they see and when; null: as a section without keys."""
    scenario: list[ScenarioEventConfig] = Field([])
    """What happens to the cluster in the course of a simulated run, by time."""
    sla: SlaConfig | None = None
    """Bounds that a request must keep to count as good; null: none."""
    cost: CostConfig = CostConfig.model_construct()
    """What GPUs cost, for the cost of tokens."""
    live: LiveConfig = LiveConfig.model_construct()
    """How the same plan runs for real; a simulation reads `migration_limit` and `metrics_namespace`
    only."""
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    """Seed of everything that is drawn: same seed, same report."""
    _base_dir: Path = PrivateAttr(default_factory=Path)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        cluster = self.cluster
        check_rules(
            [
                ("cluster.cpu_workers", cluster.cpu_workers > cluster.workers,
                 f"{cluster.cpu_workers} of {cluster.workers} workers", "at most all can be CPUs"),
                *((f"live.topology.{domain}", domain in self._domains(),
                   "stated beside the cluster's topology, which says where each worker is",
                   "keep one of them") for domain in self.live.topology),
            ]
        )  # fmt: skip
        self._check_pools()
        self._check_controllers()
        self._check_startup()
        self._check_frontend()
        self._check_price()
        self._check_version()
        self._check_scenario()
        kind = self.timing.kind
        is_blind = kind in NEEDS_MODEL
        check_rules(
            [
                ("workload.sampling", not is_blind and self.workload.sampling != "greedy",
                 f"timing kind {kind} does not know what sampling costs",
                 "remove it: its step times hold whatever the engine did"),
                ("workload.sampling", self.workload.sampling == "model" and self.model is None,
                 "model: no model is named", "name it, or say greedy, random or truncated"),
            ]
        )  # fmt: skip
        why = f"timing kind {kind} needs it" if kind in NEEDS_MODEL else ""
        if not why and self.engine.num_gpu_blocks == "auto":
            why = "engine.num_gpu_blocks: auto needs it"
        remedy = {
            "model": "add `model: Qwen/Qwen3-32B` or another known name",
            "hardware": "add `hardware: h200_sxm` or another known name",
        }
        check_rules(
            (key, bool(why) and getattr(self, key) is None, f"missing; {why}", remedy[key])
            for key in ("model", "hardware")
        )
        return self

    def _domains(self) -> set[str]:
        """Kinds of places that the cluster's workers have."""
        roles = POOL_ROLES if self.cluster.is_disagg else (None,)
        return {domain for role in roles for domain in self.cluster.topology_of(role)}

    @property
    def sampling(self) -> Sampling:
        """How the workload's requests have their tokens chosen."""
        stated = self.workload.sampling
        if stated != "model":
            return stated
        from dynosim.silicon.generation import default_sampling

        return default_sampling(self.model or "")

    @property
    def num_gpus(self) -> int:
        """GPUs of the whole cluster."""
        return sum(pool.cluster.workers * pool.engine.gpus_per_worker for pool in self.pools())

    @property
    def num_workers(self) -> int:
        """Workers of the whole cluster."""
        return sum(pool.cluster.workers for pool in self.pools())

    @property
    def layout(self) -> str:
        """The cluster in the field's short form: `2P1D` of a disaggregated one, else `4x`."""
        cluster = self.cluster
        if cluster.is_disagg:
            return f"{cluster.prefill.workers}P{cluster.decode.workers}D"
        return f"{cluster.workers}x"

    def pools(self) -> "list[RunConfig]":
        """The plan as each pool sees it; the plan itself where there is one pool."""
        if not self.cluster.is_disagg:
            return [self]
        return [self.for_pool(role) for role in POOL_ROLES]

    def for_pool(self, role: PoolRole) -> "RunConfig":
        """The plan as a pool sees it: an aggregated cluster of its workers, its own keys in place.

        The plan must be a disaggregated one, checked.
        """
        pool = self.cluster.pool(role)
        cluster = ClusterConfig.model_construct(
            {"workers", "topology", "taints", "tiers", "startup"},
            workers=pool.workers,
            topology=dict(self.cluster.topology_of(role)),
            taints=self.cluster.taints_of(role),
            tiers=self.cluster.tiers if role == "prefill" else None,
            startup=self.cluster.startup_of(role),
            max_sim_time_ms=self.cluster.max_sim_time_ms,
        )
        changes: dict[str, Any] = {
            "cluster": cluster,
            "engine": self.engine.model_copy(update=stated_in(pool.engine)),
            "router": self.router.model_copy(
                update=_router_of(role, self.router) | stated_in(pool.router)
            ),
        }
        if pool.hardware is not None:
            changes["hardware"] = pool.hardware
        if pool.timing is not None:
            changes["timing"] = pool.timing
        return self.model_copy(update=changes)

    @property
    def base_dir(self) -> Path:
        """Folder of the file this came from."""
        return self._base_dir

    def _check_pools(self) -> None:
        """Refuses keys of a pool that do not go with what all pools share."""
        rules: list[Rule] = []
        for role in POOL_ROLES if self.cluster.is_disagg else ():
            pool = self.cluster.pool(role)
            for key, shared in (("engine", self.engine), ("router", self.router)):
                stated = stated_in(getattr(pool, key))
                if stated:
                    rules += _broken_rules(shared, stated, f"cluster.{role}.{key}")
        check_rules(rules)

    @property
    def launches_workers(self) -> bool:
        """Whether anything starts workers while the run goes on."""
        return self.is_scaled or any(event.launches_workers for event in self.scenario)

    @property
    def is_scaled(self) -> bool:
        """Whether a controller decides how many workers there are."""
        return bool(self.controllers())

    def controllers(self) -> list[str]:
        """The sections that decide how many workers there are; a checked plan has one at most."""
        return [name for name in CONTROLLERS if getattr(self, name) is not None]

    @property
    def planner_in_full(self) -> PlannerConfig | None:
        """The planner's section; targets that it does not state are the bounds of `sla`."""
        planner, sla = self.planner, self.sla
        if planner is None or sla is None:
            return planner
        missing = [key for key in ("ttft_ms", "itl_ms") if getattr(planner, key) is None]
        return planner.model_copy(update={key: getattr(sla, key) for key in missing})

    @property
    def waits_for_workers(self) -> bool:
        """Whether requests wait while there is no worker at all."""
        is_asked = self.scaling is None or self.scaling.wait_for_workers
        return self.is_scaled and is_asked

    def _check_controllers(self) -> None:
        """Refuses two who decide the same, words to nobody, and nobody whom nothing wakes."""
        stated = self.controllers()
        is_empty = not self.cluster.is_disagg and self.cluster.workers == 0
        check_rules(
            [
                *((name, True, f"stated beside {stated[0]}: both would decide on the same workers",
                   "keep one") for name in stated[1:]),
                ("scaling", self.scaling is not None and not stated,
                 "stated, but nobody decides on the number of workers",
                 "add planner:, hpa:, keda: or concurrency:, or remove it"),
                ("cluster.workers", is_empty and not self.waits_for_workers,
                 "none at the start, and requests are refused where nobody serves",
                 "add planner:, keda: or concurrency: with scaling.wait_for_workers, or start one"),
                ("cluster.workers", is_empty and self.hpa is not None,
                 "none at the start, and an HPA wakes nobody at 0", "start at least one"),
            ]
        )  # fmt: skip

    def _check_startup(self) -> None:
        """Refuses to say how workers start where none does."""
        pools = POOL_ROLES if self.cluster.is_disagg else (None,)
        sections = [(role, self.cluster.startup_of(role)) for role in pools]
        check_rules(
            ("cluster.startup" if role is None or self.cluster.pool(role).startup is None
             else f"cluster.{role}.startup",
             section is not None and section.initial == "ready" and not self.launches_workers,
             "stated, but no worker starts during the run",
             "set its key initial: starting, or remove it")
            for role, section in sections
        )  # fmt: skip

    def _check_frontend(self) -> None:
        """Refuses clients that could give up while the frontend still has their requests."""
        frontend, timeout_ms = self.cluster.frontend, self.workload.client_timeout_ms
        fixed_ms = frontend.preprocess_ms + frontend.route_ms + frontend.dispatch_ms
        check_rules(
            [
                *((f"cluster.frontend.{key}", timeout_ms is not None and getattr(frontend, key) > 0,
                   "stated beside workload.client_timeout_ms, and clients that give up in the "
                   "frontend are not simulated", "remove one")
                  for key in ("preprocess_us_per_token", "startup_ms")),
                ("workload.client_timeout_ms", timeout_ms is not None and timeout_ms <= fixed_ms,
                 f"over while the frontend has a request, for {fixed_ms:g} ms", "raise it"),
            ]
        )  # fmt: skip

    def _check_version(self) -> None:
        """Refuses a version of the engine that cannot be."""
        from dynosim.silicon.table_versions import version_problem, versions_nearby

        version = self.engine.version
        problem = None if version is None else version_problem(version)
        known = [] if problem is None else versions_nearby(self.hardware, self.engine.kind)
        remedy = f"the tables know {', '.join(known)}" if known else "write 0.19.0 or another one"
        check_rules([("engine.version", problem is not None, problem or "", remedy)])

    def _check_scenario(self) -> None:
        """Refuses events of workers, pools and places that there never are."""
        check_rules(self.rules_of_scenario(may_grow=self.is_scaled))

    def rules_of_scenario(self, *, may_grow: bool) -> Iterator[Rule]:
        """What is wrong with its events; `may_grow`: more workers may come than they start."""
        cluster = self.cluster
        pools = {"workers": cluster.workers - cluster.cpu_workers}
        if cluster.cpu_workers:
            pools["cpu_workers"] = cluster.cpu_workers
        roles: tuple[PoolRole | None, ...] = (None,)
        if cluster.is_disagg:
            roles = POOL_ROLES
            pools = {role: cluster.pool(role).workers for role in POOL_ROLES}
        places: dict[str, set[str]] = {}
        for role in roles:
            for domain, values in cluster.topology_of(role).items():
                places.setdefault(domain, set()).update(values)
        yield from scenario_rules(
            self.scenario,
            pools,
            places,
            frontends=self.router.frontends,
            may_grow=may_grow,
            deafness=self._deafness(roles),
        )
        yield from self._rules_of_new_workers(roles)

    def _rules_of_new_workers(self, roles: tuple[PoolRole | None, ...]) -> Iterator[Rule]:
        """What is wrong with engines of new generations: vLLM would not start them."""
        for number, event in enumerate(self.scenario):
            new = event.new_workers
            stated = {} if new is None else stated_in(new.engine)
            for role in roles if stated else ():
                engine = self.engine if role is None else self.for_pool(role).engine
                where = f"scenario.{number}.{event.action}.engine"
                yield from _broken_rules(engine, stated, where)

    def _deafness(self, roles: tuple[PoolRole | None, ...]) -> tuple[str, str] | None:
        """Why no router would notice lost KV events, and the remedy; None: some router would."""
        found = None
        for role in roles:
            router = self.router if role is None else self.for_pool(role).router
            found = router.deafness
            if found is None:
                break
        return found

    def _check_price(self) -> None:
        """Prices of other GPUs alone have no effect."""
        has_none = bool(self.cost.gpu_hour) and self.cost.price_of(self.hardware) is None
        name = self.hardware or "the hardware"
        check_rules([("cost.gpu_hour", has_none, f"has no price of {name}", f"add {name}: 2.50")])

    @property
    def model_source(self) -> str | None:
        """The model's name, or where its config.json is."""
        return self._located(self.model)

    @property
    def hardware_source(self) -> str | None:
        """The hardware's name, or where its data sheet is."""
        return self._located(self.hardware)

    @property
    def link_gb_per_s(self) -> float | None:
        """Rate of the link between the GPUs of a worker, if one is stated."""
        return self.hardware.link_gb_per_s if isinstance(self.hardware, NamedHardware) else None

    def _located(self, name: str | None) -> str | None:
        if name is None:
            return None
        return str(self.resolve(name)) if is_path(name) else str(name)

    def resolve(self, name: str) -> Path:
        """Where the file `name` is: from the current folder, the file's, or that one's parent.

        The first place that has it wins; if none has, the name as given (its reader will say so).
        """
        given = Path(name).expanduser()
        places = (given, self._base_dir / given, self._base_dir.parent / given)
        return next((place for place in places if place.exists()), given)


_DECODE_ROUTER: dict[str, Any] = {
    "overlap_score_credit": 0.0,
    "assume_kv_reuse": False,
    "track_prefill_tokens": False,
}
"""How Dynamo 1.6's router chooses among decode workers: their KV comes from the prefill worker, so
what they hold saves no computing."""

_PREFILL_ROUTER: dict[str, Any] = {"track_active_blocks": False}
"""And among prefill workers: what they compute counts, not what they hold while they do."""


def _router_of(role: PoolRole, router: RouterConfig) -> dict[str, Any]:
    """In what a pool's router differs by its role."""
    if router.mode != "kv":
        return {}
    return _DECODE_ROUTER if role == "decode" else _PREFILL_ROUTER


def _broken_rules(shared: Section, stated: dict[str, Any], where: str) -> list[Rule]:
    """What a section's rules say of it with other keys in place."""
    try:
        type(shared).of(shared.model_dump() | stated)
    except ValidationError as error:
        found = [one for one in error.errors(include_url=False) if one["type"] == RULES]
        return [
            (f"{where}.{key}", True, text, remedy)
            for one in found
            for key, text, remedy in one["ctx"]["broken"]
        ]
    return []
