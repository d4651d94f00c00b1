"""Which layouts need no closer look: another one carries far more and is faster for its users.

It is decided once the capacity of every layout lies between two loads that were tried. A layout is
not pursued if what it may carry at best is at most half of what another one carries for sure, per
GPU, and if the users of that one get their tokens at least as fast as its own ever did, at whatever
load. Such a layout is the best in nothing that an answer names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynosim.sweep.study import USER_SPEED, LayoutStudy

FAR_MORE = 2.0


@dataclass(frozen=True, slots=True)
class _Located:
    """What is known of a layout: requests a second and GPU, output tokens a second and user."""

    least_rps: float
    most_rps: float | None  # None: no load failed
    speed: float  # at the load that it carries
    best_speed: float  # at any load


def not_pursued(studies: Mapping[int, LayoutStudy]) -> dict[int, str]:
    """By layout why it needs no closer look, from studies that are all located."""
    located = {index: known for index, study in studies.items() if (known := _located(study))}
    reasons = {}
    leaders = _leaders(located.values())
    for index, layout in located.items():
        best = next((other for other in leaders if _is_far_better(other, layout)), None)
        if best is not None and layout.most_rps is not None:
            reasons[index] = (
                f"carries less than {layout.most_rps:.3g} requests/s per GPU, where another "
                f"carries {best.least_rps:.3g} and is faster for its users"
            )
    return reasons


def _located(study: LayoutStudy) -> _Located | None:
    """None for a layout that carries nothing: of that no more is tried."""
    bracket = study.located
    if bracket is None or bracket.low is None:
        return None
    carried = study.probes[bracket.low]
    failed = None if bracket.high is None else study.probes[bracket.high]
    gpus = carried.report.get("num_gpus")
    if not gpus or carried.offered_rps is None:
        return None
    most = None if failed is None or failed.offered_rps is None else failed.offered_rps / gpus
    speed = carried.report.get(USER_SPEED) or 0.0
    return _Located(carried.offered_rps / gpus, most, speed, study.located_speed)


def _leaders(layouts: Iterable[_Located]) -> list[_Located]:
    """Those that no other one surely beats in both, by falling requests and rising speed.

    Who is far worse than any layout is far worse than one of these.
    """
    leaders: list[_Located] = []
    for layout in sorted(layouts, key=lambda each: (-each.least_rps, -each.speed)):
        if not leaders or layout.speed > leaders[-1].speed:
            leaders.append(layout)
    return leaders


def _is_far_better(other: _Located, layout: _Located) -> bool:
    if layout.most_rps is None:
        return False
    return other.least_rps >= FAR_MORE * layout.most_rps and other.speed >= layout.best_speed
