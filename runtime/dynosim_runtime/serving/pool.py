"""The workers of one role, and the router among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynosim.config import RunConfig
from dynosim.config.cluster import PoolRole
from dynosim_runtime.card import LiveCard, Role
from dynosim_runtime.clients.base import EngineClient
from dynosim_runtime.kv_events.subscriber import Subscriptions
from dynosim_runtime.serving.agreement import check_agreement, check_handoff, check_role
from dynosim_runtime.serving.in_flight import InFlight
from dynosim_runtime.serving.make_router import LiveRouting
from dynosim_runtime.serving.membership import Membership, Probe
from dynosim_runtime.serving.placement import LivePlacement
from dynosim_runtime.serving.router import Clock, RouterService


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """A role, its part of the plan, and its router with the log."""

    role: Role
    plan: RunConfig  # as the pool sees it
    routing: LiveRouting


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What serves the requests of one role."""

    role: Role
    routing: LiveRouting
    subscriptions: Subscriptions
    placement: LivePlacement

    @property
    def members(self) -> Membership:
        """Its workers."""
        return self.placement.members

    @property
    def router(self) -> RouterService:
        """Who chooses among them."""
        return self.placement.router

    def cards_of(self, cards: Mapping[int, LiveCard]) -> dict[int, LiveCard]:
        """Those that it is to look at: where nobody else would, of other roles, too."""
        if self.role == "prefill":
            return {number: card for number, card in cards.items() if card.role == "prefill"}
        if self.role == "decode":
            return {number: card for number, card in cards.items() if card.role != "prefill"}
        return dict(cards)


def router_log_name(role: Role) -> str:
    """Folder of the log of a pool's router."""
    return "router" if role == "agg" else f"router-{role}"


def plan_pools(plan: RunConfig, out: Path | None) -> list[PoolPlan]:
    """The pools of a plan, those that answer clients last. Raises: as `LiveRouting`."""
    if not plan.cluster.is_disagg:
        return [PoolPlan(role="agg", plan=plan, routing=LiveRouting(plan, out))]
    roles: tuple[PoolRole, ...] = ("prefill", "decode")
    pools = []
    for role in roles:
        part = plan.for_pool(role)
        looks_at_caches = role == "decode" and plan.cluster.conditional is not None
        routing = LiveRouting(
            part, out, log_name=router_log_name(role), must_follow=looks_at_caches
        )
        pools.append(PoolPlan(role=role, plan=part, routing=routing))
    return pools


def make_pool(
    pool: PoolPlan,
    now_ms: Clock,
    probe: Probe,
    clients: Mapping[str, EngineClient],
    *,
    model: str,
    first_token: str,
    others: list[Pool],
    on_change: Callable[[Membership], None],
) -> Pool:
    """A pool without workers yet; `others` are those that its workers exchange KV with."""
    routing = pool.routing
    router = RouterService(routing.inputs, now_ms, maintain=routing.maintain)
    in_flight, subscriptions = InFlight(), Subscriptions()

    def check(card: LiveCard) -> None:
        check_role(card, pool.role)
        if pool.role != "agg":
            check_handoff(card, first_token=first_token)
            check_agreement(
                card,
                (
                    card
                    for other in others
                    if other.role != pool.role
                    for card in other.members.cards.values()
                ),
            )

    members = Membership(
        router,
        subscriptions,
        probe,
        in_flight,
        model=model,
        block_size=routing.block_size,
        follows_events=routing.follows_events,
        check=check,
        on_change=on_change,
    )
    placement = LivePlacement(
        router,
        members,
        in_flight,
        clients,
        block_size=routing.block_size,
        tracks_output=routing.tracks_output,
        ignores_pins=pool.plan.live.ignore_cache_control,
    )
    return Pool(role=pool.role, routing=routing, subscriptions=subscriptions, placement=placement)
