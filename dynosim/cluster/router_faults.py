"""What befalls the routers of a cluster: frontends that die, and KV events that get lost."""

from typing import TYPE_CHECKING, TypeAlias

from dynosim.cluster.event_faults import EventFault
from dynosim.cluster.placement import AnyPlacer
from dynosim.cluster.pool_placers import PoolPlacers

if TYPE_CHECKING:
    from dynosim.cluster.router_placer import RouterPlacer

RouterFault: TypeAlias = "tuple[RouterPlacer, int]"  # a fault of events, and its number there


def frontends_of(placer: AnyPlacer) -> "RouterPlacer | PoolPlacers":
    """Whoever places with frontends. Raises: ValueError if load alone decides."""
    # Here, or every run would load the routers.
    from dynosim.cluster.router_placer import RouterPlacer

    if not isinstance(placer, (RouterPlacer, PoolPlacers)):
        raise ValueError("there is but one frontend, and nobody to take its place")
    return placer


def begin_event_fault(placer: AnyPlacer, fault: EventFault, now_ms: float) -> list[RouterFault]:
    """What some workers publish is lost or late; returns what `end_event_fault` needs.

    Raises: ValueError if no router hears of events, or if they have no numbers.
    """
    # Here, or every run would load the routers.
    from dynosim.cluster.router_placer import RouterPlacer

    routers = [placer] if isinstance(placer, RouterPlacer) else []
    if isinstance(placer, PoolPlacers):
        routers = placer.routers
    hearing = [router for router in routers if router.events_may_worsen]
    if not hearing:
        raise ValueError("no router here gets KV events with numbers, to notice what is lost")
    return [(router, router.begin_event_fault(fault, now_ms)) for router in hearing]


def end_event_fault(begun: list[RouterFault], now_ms: float) -> None:
    """What workers publish from now on arrives as usual."""
    for router, number in begun:
        router.end_event_fault(number, now_ms)
