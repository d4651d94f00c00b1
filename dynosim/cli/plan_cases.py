"""`dynosim plan-cases`: scenarios of scaling, tried with each controller, in; verdicts out."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynosim.atomic import text_writer, write_files
from dynosim.cli.text_table import print_table, print_wrapped
from dynosim.compare.pass_rules import sentence
from dynosim.compare.planner_scenarios import SCENARIOS, ScalingScenario, ScenarioVerdict, try_all
from dynosim.compare.scaled_service import KINDS, ControllerKind
from dynosim.compare.scenario_page import page, tried_rows
from dynosim.errors import EXIT_NOT_MET, ConfigError
from dynosim.files.result_folder import check_files


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioArguments:
    """What `dynosim plan-cases` was asked for; no names: all scenarios."""

    names: Sequence[str]
    controllers: str  # with commas
    to: Path | None
    overwrite: bool
    as_json: bool
    fail_if_any: bool


def plan_cases_command(asked: ScenarioArguments) -> int:
    """Try, print, and write the page; returns 0, or 3 if one fails and that was asked.

    Raises: ConfigError for a scenario or controller that there is not.
    """
    scenarios, kinds = _scenarios(asked.names), _kinds(asked.controllers)
    if asked.to is not None:
        check_files([asked.to], overwrite=asked.overwrite, option="--to")
    tried = list(try_all(scenarios, kinds))
    if asked.to is not None:
        write_files(asked.to.parent, {asked.to.name: text_writer(page(tried))})
        print(f"written: {asked.to}", file=sys.stderr)
    if asked.as_json:
        print(json.dumps({"scenarios": tried_rows(tried)}, indent=2))
    else:
        _print_verdicts(scenarios, kinds, tried)
    is_failed = any(not one.passes for one in tried)
    return EXIT_NOT_MET if asked.fail_if_any and is_failed else 0


def _print_verdicts(
    scenarios: Sequence[ScalingScenario],
    kinds: Sequence[ControllerKind],
    tried: Sequence[ScenarioVerdict],
) -> None:
    verdicts = {(one.scenario.name, one.kind): "passes" if one.passes else "FAILS" for one in tried}
    rows = [[one.name, *(verdicts[one.name, kind] for kind in kinds)] for one in scenarios]
    print_table(["scenario", *kinds], rows)
    for one in tried:
        if not one.passes:
            print_wrapped(f"{one.scenario.name}, {one.kind}: {sentence(one.outcomes)}")


def _scenarios(names: Sequence[str]) -> list[ScalingScenario]:
    known = [one.name for one in SCENARIOS]
    for name in names:
        if name not in known:
            raise ConfigError(f"no scenario {name} (there are {', '.join(known)})")
    return [one for one in SCENARIOS if one.name in names or not names]


def _kinds(text: str) -> list[ControllerKind]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in KINDS:
            raise ConfigError(
                f"--controller {word}: no such controller (give some of {','.join(KINDS)})"
            )
    return [kind for kind in KINDS if kind in words]
