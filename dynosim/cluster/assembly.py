"""Puts a cluster together for a run: its parts, and who knows whom."""

from dataclasses import replace

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.apart import can_go_apart
from dynosim.cluster.books import Books
from dynosim.cluster.cluster import Cluster
from dynosim.cluster.dispatch import Dispatch
from dynosim.cluster.endings import Endings
from dynosim.cluster.fleet import Fleet
from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.generations import Generations
from dynosim.cluster.handoffs import Handoffs
from dynosim.cluster.journal import HandoffColumns, Journal, TierColumns
from dynosim.cluster.launcher import Launcher
from dynosim.cluster.lobby import Lobby
from dynosim.cluster.migrants import Migrants
from dynosim.cluster.patience import Patience
from dynosim.cluster.placement import AnyPlacer
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.requests import Requests
from dynosim.cluster.routing import make_placer
from dynosim.cluster.shared_store import SharedStore
from dynosim.cluster.spec import ClusterSpec, DisaggSpec, RunOptions
from dynosim.cluster.tier_stores import TierStores
from dynosim.cluster.tier_traffic import TierTraffic
from dynosim.cluster.trail import TrailColumns
from dynosim.cluster.transfers import Transfers
from dynosim.engine.ranks import ONE_RANK
from dynosim.records import Trace
from dynosim.router.handoff import HandoffFlow, HandoffSpec
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.workload.extents import PrefixExtents, prefix_extents
from dynosim.workload.load import Arrivals, LoadDriver


class Assembly:
    """A cluster whose workers are still to be launched, and what its run is read from later."""

    def __init__(
        self,
        trace: Trace,
        cluster: ClusterSpec,
        options: RunOptions,
        *,
        is_steered: bool,
        may_fail: bool,
    ) -> None:
        """`is_steered`: workers may come and go; `may_fail`: so may what they hold."""
        self._trace = trace
        self._spec = cluster
        self._options = options
        self._extents = extents_for(trace, cluster, may_fail=may_fail)
        self.routing, self._decode_routing = _routings(trace, cluster, options)
        self.ingress_ms = cluster.pools[0].times.ingress_ms + self.routing.hop_ms
        self.egress_ms = cluster.pools[-1].times.egress_ms
        self.journal = _journal(trace, cluster)
        self.trail = TrailColumns() if options.records_trail else None
        self.stores = TierStores()
        self.placer = self._make_placer(may_change=is_steered)
        self.load: Arrivals = LoadDriver(trace, options.concurrency)
        self.frontend = None  # the load, if it has stages of a frontend
        if cluster.frontend is not None:
            self.load = self.frontend = StagedLoad(self.load, trace.input_tokens, cluster.frontend)
        self.books = Books(
            self.journal,
            self.placer,
            cluster,
            ingress_ms=self.ingress_ms,
            egress_ms=self.egress_ms,
            frontend=self.frontend,
        )
        self.running = self._put_together()

    @property
    def outside_ms(self) -> float:
        """What a request spends outside of the cluster, there and back."""
        return self.ingress_ms + self.egress_ms

    @property
    def is_closed_loop(self) -> bool:
        """Whether requests come when others end, whatever their times."""
        return self._options.concurrency is not None

    @property
    def can_go_apart(self) -> bool:
        """Whether workers that neither come nor go can be followed one by one."""
        return can_go_apart(self._spec, self.routing, self._options, self.load)

    def _put_together(self) -> Cluster:
        journal, agenda, generations = self.journal, Agenda(), _generations(self._spec)
        requests = Requests(self._trace, self._extents, self._spec)
        patience, tiers = self._patience(), TierTraffic(agenda, self.stores, journal)
        endings = Endings(journal, self.load, self.outside_ms)
        migrants = Migrants(journal, self._options.migration_limit)
        fleet = Fleet(
            self._launcher(),
            agenda=agenda,
            placer=self.placer,
            tiers=tiers,
            journal=journal,
            generations=generations,
        )
        handoffs = None
        if self._spec.disagg is not None:
            handoffs = self._handoffs(self._spec.disagg, requests, agenda, fleet, endings)
        dispatch = Dispatch(
            requests,
            load=self.load,
            placer=self.placer,
            agenda=agenda,
            fleet=fleet,
            endings=endings,
            migrants=migrants,
            journal=journal,
            handoffs=handoffs,
            generations=generations,
            patience=patience,
            lobby=Lobby() if self._options.waits_for_workers else None,
            frontend=self.frontend,
        )
        return Cluster(
            agenda=agenda,
            fleet=fleet,
            dispatch=dispatch,
            endings=endings,
            migrants=migrants,
            tiers=tiers,
            journal=journal,
            handoffs=handoffs,
            patience=patience,
            generations=generations,
        )

    def _make_placer(self, *, may_change: bool) -> AnyPlacer:
        """Who places requests; with prefill and decode workers apart, by the routing of each."""
        trace, extents, cluster = self._trace, self._extents, self._spec
        seen = None
        if self.routing.settings.cost.shared_cache_multiplier:
            seen = SharedStore(self.stores, extents)
        is_alone = self._decode_routing is None
        first = make_placer(
            self.routing,
            trace,
            extents,
            cluster.cards() if is_alone else cluster.cards("prefill"),
            cluster.ranks if is_alone else ONE_RANK,
            may_change=may_change,
            shared_store=seen,
        )
        if self._decode_routing is None:
            return first
        cards = cluster.cards("decode")
        second = make_placer(self._decode_routing, trace, extents, cards, may_change=may_change)
        return PoolPlacers(first, second)

    def _launcher(self) -> Launcher:
        return Launcher(
            self._extents,
            self.journal,
            self.routing,
            decode_routing=self._decode_routing,
            steps_singly=self._options.exact_stepping,
            trail=self.trail,
            retains=self._trace.retention is not None,
        )

    def _patience(self) -> Patience | None:
        timeout_ms = self._options.client_timeout_ms
        if timeout_ms is None:
            return None
        # What is over so late that its last token comes after the time-out is given up, too.
        return Patience(max(0.0, timeout_ms - self.outside_ms), self.journal)

    def _handoffs(
        self, disagg: DisaggSpec, requests: Requests, agenda: Agenda, fleet: Fleet, endings: Endings
    ) -> Handoffs:
        """What takes requests from one pool to the other."""
        assert isinstance(self.placer, PoolPlacers)
        return Handoffs(
            HandoffFlow(disagg.handoff),
            Transfers(disagg.transfer, self._spec),
            requests=requests,
            placer=self.placer,
            agenda=agenda,
            fleet=fleet,
            endings=endings,
            journal=self.journal,
        )


def _journal(trace: Trace, cluster: ClusterSpec) -> Journal:
    """A journal with columns for all that requests can go through here."""
    journal = Journal(trace)
    if cluster.disagg is not None:
        shows_prefill_tokens = cluster.disagg.handoff.first_token == "prefill"
        journal.handoffs = HandoffColumns(len(trace), shows_prefill_tokens=shows_prefill_tokens)
    if any(pool.tiers is not None for pool in cluster.pools):
        journal.tiers = TierColumns(journal.scheduled_ms, cluster.block_size)
    return journal


def _routings(
    trace: Trace, cluster: ClusterSpec, options: RunOptions
) -> tuple[RoutingSpec, RoutingSpec | None]:
    """How requests that come are placed, and then their answers, if other workers give them."""
    routing = _first_routing(cluster, trace, options)
    if cluster.disagg is None:
        return routing, None
    decode_routing = cluster.disagg.decode_routing or _in_turn(cluster.block_size, options.seed)
    decode_routing = replace(
        decode_routing,
        has_wishes=routing.has_wishes,
        is_asked=decode_routing.is_asked or routing.is_asked,
    )
    return _as_asked(cluster.disagg.handoff, routing, decode_routing)


def _first_routing(cluster: ClusterSpec, trace: Trace, options: RunOptions) -> RoutingSpec:
    """How requests that come are placed."""
    routing = cluster.routing or _in_turn(cluster.block_size, options.seed)
    if trace.wishes is not None:
        routing = replace(routing, has_wishes=True)
    if any(pool.tiers is not None and pool.tiers.are_published for pool in cluster.pools):
        routing = replace(routing, has_slower_tiers=True)  # or their events would be of devices
    return replace(routing, is_asked=True) if cluster.mixes_no_generations else routing


def _in_turn(block_size: int, seed: int) -> RoutingSpec:
    """How requests are placed if nobody says: on each worker in turn."""
    return RoutingSpec(RouterSpec(block_size, mode="round-robin", seed=seed))


def _as_asked(
    handoff: HandoffSpec, prefill: RoutingSpec, decode: RoutingSpec
) -> tuple[RoutingSpec, RoutingSpec]:
    """The routing of both pools; where somebody asks for places or loads, routers do it."""
    if handoff.conditional is not None:
        return replace(prefill, is_asked=True), replace(decode, is_asked=True)
    if handoff.kv_transfer is None:
        return prefill, decode
    if handoff.order == "decode_first":
        return replace(prefill, is_asked=True), decode
    return prefill, replace(decode, is_asked=True)


def _generations(cluster: ClusterSpec) -> Generations | None:
    """Those that do not mix, if they do not."""
    if not cluster.mixes_no_generations:
        return None
    return Generations([pool.name for pool in cluster.pools])


def extents_for(trace: Trace, cluster: ClusterSpec, *, may_fail: bool = False) -> PrefixExtents:
    """Prompts in terms of extents; of single blocks where a prompt may stop amid any of them: by a
    cap, or because its KV does not come, or is computed here while others' KV comes."""
    engines = [pool.engine for pool in cluster.pools]
    may_stop = any(engine.long_prefill_token_threshold > 0 for engine in engines)
    if cluster.disagg is not None:
        may_stop |= may_fail or cluster.disagg.handoff.conditional is not None
    reuse_blocks = {engine.reuse_blocks for engine in engines}
    may_stop |= len(reuse_blocks) > 1
    return prefix_extents(
        trace, cluster.block_size, single_blocks=may_stop, reuse_blocks=max(reuse_blocks)
    )
