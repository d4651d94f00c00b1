"""What scenarios of scaling came to, as a page (Markdown) and as plain values."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from dynosim.compare.pass_rules import IN_TIME, TTFT_S, sentence
from dynosim.compare.planner_scenarios import ScenarioVerdict
from dynosim.compare.scaled_service import (
    DEMAND_INTERVAL_S,
    HPA_TTFT_S,
    ITL_S,
    KEDA_PENDING,
    MAX_UTILIZATION,
    MAX_WORKERS,
)

_HEAD = f"""\
# Planner scenarios

What users of planners report, as small scenarios that anybody who scales passes or does not: the
[planner](autoscalers.md), an HPA, KEDA. Written by `dynosim plan-cases --to FILE`; without
`--to` it prints the verdicts.

A worker computes 10,000 prompt tokens a second, has eight seats, and serves about 1.8 requests of
1,000 and 100 tokens a second; it starts in 30 s unless another time is stated. Arrivals are
Poisson's, from a seed. A request is in time if its first token comes within {TTFT_S:g} s and all of
its answer does come; {IN_TIME:.0%} have to be.

| who scales, in all of them from 1 to {MAX_WORKERS} workers | how it is set up |
|---|---|
| planner | target `sla` (TTFT {TTFT_S:g} s, ITL {ITL_S * 1e3:g} ms), demand every \
{DEMAND_INTERVAL_S:g} s, load every 5 s, `max_utilization: {MAX_UTILIZATION:g}` |
| hpa | 95th percentile of TTFT over five minutes, target {HPA_TTFT_S:g} s; Kubernetes' default \
windows and policies |
| keda | requests without a first token, target {KEDA_PENDING:g} for each worker; default polling, \
cooldown and HPA |

An HPA and KEDA scale one pool: of two pools each has its own. What they fail is what their signal
or their rule does not know; with other targets other verdicts are possible. Nothing of a rule is
made for one of the three. A figure that is not as asked stands in **bold**.
"""


def page(tried: Sequence[ScenarioVerdict]) -> str:
    """All of it; of each scenario all that were tried must be next to each other."""
    kinds = list(dict.fromkeys(one.kind for one in tried))
    lines = [_HEAD, _row(["scenario", *kinds]), _rule(kinds)]
    by_scenario = [list(group) for _, group in groupby(tried, key=lambda one: one.scenario.name)]
    for group in by_scenario:
        name = group[0].scenario.name
        verdicts = ["passes" if one.passes else "**fails**" for one in group]
        lines.append(_row([f"[{name}](#{name})", *verdicts]))
    for group in by_scenario:
        lines += _section(group)
    return "\n".join(lines) + "\n"


def tried_rows(tried: Sequence[ScenarioVerdict]) -> list[dict[str, Any]]:
    """Scenario, controller and verdict, with every claim."""
    return [
        {
            "scenario": one.scenario.name,
            "controller": one.kind,
            "passes": one.passes,
            "why": sentence(one.outcomes),
            "claims": [
                {
                    "claim": each.claim,
                    "expected": each.expected,
                    "got": each.got,
                    "holds": each.holds,
                }
                for each in one.outcomes
            ],
        }
        for one in tried
    ]


def _section(group: Sequence[ScenarioVerdict]) -> Iterator[str]:
    scenario = group[0].scenario
    yield f"\n## {scenario.name}\n"
    yield f"Reported: {scenario.reported}.\n"
    yield f"Here: {scenario.setup}.\n"
    kinds = [one.kind for one in group]
    yield _row(["asked", *kinds])
    yield _rule(kinds)
    for outcomes in zip(*(one.outcomes for one in group), strict=True):
        got = [each.got if each.holds else f"**{each.got}**" for each in outcomes]
        yield _row([f"{outcomes[0].claim}: {outcomes[0].expected}", *got])
    if scenario.remark:
        yield f"\n{scenario.remark}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(kinds: Sequence[str]) -> str:
    return "|---" * (1 + len(kinds)) + "|"
