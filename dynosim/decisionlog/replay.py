"""Every decision of a controller's log made once more, by a controller as its plan says."""

import json
from pathlib import Path
from typing import Any

import msgspec

from dynosim.build.live_control import live_controller
from dynosim.config.loading import run_config_from_dict
from dynosim.decisionlog.files import DecisionFile, decision_files
from dynosim.planner.decision import ScalingDecision
from dynosim.planner.log_values import replay
from dynosim.routerlog.replay import Verdict


def replay_decisions(path: Path) -> Verdict:
    """Make every decision of a log, a file or a folder, again, up to the first that differs.

    Raises: ConfigError naming the line that is not what a controller's log has, or what is wrong
    with its plan.
    """
    if not path.is_dir():
        return _of_file(path)
    total = Verdict(0, 0, num_files=0)
    for file in decision_files(path):
        verdict = _of_file(file)
        total = total.with_file(file.name, verdict)
        if not total.is_equal:
            break
    return total


def _of_file(path: Path) -> Verdict:
    """The verdict on one file; entries are looks."""
    file = DecisionFile(path)
    header = file.header
    plan = run_config_from_dict(header.plan, f"{path}: plan")
    controller = live_controller(plan, header.speedup)
    num_looks = num_decisions = 0
    for line, look in file.looks():
        if line - 1 <= header.num_before:
            controller.look(look.seen)
            continue
        num_looks += 1
        num_decisions += look.decision is not None
        for difference in replay([look], controller):
            logged, derived = _plain(difference.logged), _plain(difference.replayed)
            if _text(logged) != _text(derived):  # what is no number equals nothing, not itself
                return Verdict(
                    num_looks, num_decisions, line, look.seen.now_ms, logged, derived,
                    notes=tuple(file.notes),
                )  # fmt: skip
    return Verdict(num_looks, num_decisions, notes=tuple(file.notes))


def _plain(decision: ScalingDecision | None) -> Any:
    return msgspec.to_builtins(decision)


def _text(plain: Any) -> str:
    return json.dumps(plain)
