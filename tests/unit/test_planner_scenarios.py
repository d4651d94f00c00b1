"""Scenarios of scaling: each rule can fail and hold, what they are made for is what they notice."""

import json
import re
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from shared_data import ROOT

from dynosim.cli import main
from dynosim.compare import pass_rules as rules
from dynosim.compare.case_kit import Outcome
from dynosim.compare.planner_scenarios import SCENARIOS, ScalingScenario, ScenarioVerdict, try_all
from dynosim.compare.scaled_run import ScaledRun, WorkerTimes
from dynosim.compare.scaled_service import (
    KINDS,
    ControllerKind,
    Hand,
    ScaledService,
    Stretch,
    arrivals,
    make_planner,
    planner_spec,
)
from dynosim.compare.scenario_page import page, tried_rows
from dynosim.planner.conflict import ANOTHER_CONTROLLER
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.planner import Planner

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
PAGE = ROOT / "docs" / "planner_scenarios.md"


def worker(
    launched_s: float = 0.0,
    ready_s: float = 0.0,
    leaving_s: float = inf,
    ended_s: float = inf,
    pool: str = "workers",
) -> WorkerTimes:
    return WorkerTimes(pool, 2, launched_s, ready_s, leaving_s, ended_s)


def decision(at_s: float, current: int, verdict: str = "no_change") -> ScalingDecision:
    return ScalingDecision(at_s * 1e3, "c", (PoolDecision("workers", current, current, verdict),))


def made(
    *workers: WorkerTimes,
    ttft_s: tuple[float, ...] = (1.0, 2.0, 2.1, nan),
    decisions: tuple[ScalingDecision, ...] = (),
) -> ScaledRun:
    """A request every 100 s, of which the last is not answered."""
    count = len(ttft_s)
    return ScaledRun(
        arrival_s=100.0 * np.arange(count),
        ttft_s=np.array(ttft_s),
        is_completed=~np.isnan(ttft_s),
        migrations=np.zeros(count, np.int64),
        workers=workers,
        decisions=decisions,
        end_s=400.0,
    )


COMING = (worker(), worker(100.0, 130.0), worker(110.0, 140.0, 200.0, 260.0))
"""1, from 100 s on 2, from 110 s 3, from 200 s 2 again."""


@pytest.mark.parametrize(
    ("outcome", "got", "holds"),
    [
        (rules.in_time(made(), 0, 200, 0.9), "100.0%", True),
        (rules.in_time(made(), 0, 201, 0.9), "66.7%", False),
        (rules.in_time(made(), 0, 201, 0.66), "66.7%", True),
        (rules.in_time(made(), 400, 500), "0.0%", False),  # nobody came: nothing is shown
        (rules.all_served(made()), "1", False),
        (rules.all_served(made(ttft_s=(1.0, 9.0))), "0", True),
        (rules.none_moved(made()), "0", True),
        (rules.at_most(made(*COMING), 2, 150), "3", False),
        (rules.at_most(made(*COMING), 2, 200), "2", True),
        (rules.at_most(made(*COMING, worker(pool="decode")), 1, 150, "decode"), "1", True),
        (rules.never_above(made(*COMING), 2, 150, 199), "3", False),
        (rules.never_above(made(*COMING), 2, 50, 110), "2", True),
        (rules.never_above(made(*COMING), 2, 50, 120), "3", False),
        (rules.ready_by(made(*COMING), 2, 129), "1", False),
        (rules.ready_by(made(*COMING), 2, 130), "2", True),
        (rules.ready_by(made(*COMING), 3, 200), "2", False),
        (rules.waits_at_most(made(), 150, 2), "2 s", False),
        (rules.waits_at_most(made(), 150, 2.1), "2 s", True),
        (rules.waits_at_most(made(), 250, 99), "never", False),
        (rules.waits_at_most(made(), 350, 99), "never", False),
        (rules.turns_at_most(made(*COMING), 0, 0, 400), "1", False),
        (rules.turns_at_most(made(*COMING), 0, 0, 200), "0", True),
        (rules.changes_at_most(made(*COMING), 2, 0, 400), "3", False),
        (rules.changes_at_most(made(*COMING), 2, 100, 400), "2", True),
        (rules.busy_drained(made(*COMING), 0), "1", True),
        (rules.busy_drained(made(*COMING), 201), "0", False),
        (rules.busy_drained(made(worker(leaving_s=5.0, ended_s=5.0)), 0), "0", False),
        (rules.gpus_at_most(made(*COMING), 5), "6", False),
        (rules.gpus_at_most(made(*COMING), 6), "6", True),
        (rules.gpu_hours_at_most(made(worker()), 0.5, 0.1, "it", 0, 90), "50%", True),
        (rules.gpu_hours_at_most(made(worker()), 0.49, 0.1, "it", 0, 90), "50%", False),
        (rules.gpu_hours_at_most(made(worker()), 0.49, 0.0, "none", 0, 90), "inf%", False),
    ],
)
def test_a_rule_holds_up_to_its_limit_and_not_beyond(
    outcome: Outcome, got: str, holds: bool
) -> None:
    assert (outcome.got, outcome.holds) == (got, holds)


def test_rules_on_decisions_hold_or_not() -> None:
    decisions = (decision(10, 3), decision(70, 1), decision(90, 1, ANOTHER_CONTROLLER))
    run = made(worker(), decisions=decisions)
    assert rules.sees_edit(run, 60, 1).holds and not rules.sees_edit(run, 60, 2).holds
    assert not rules.sees_edit(run, 60, 1, within_s=10).holds  # the decision is not before its end
    assert rules.noticed_another(run, 60, 30).holds
    assert not rules.noticed_another(run, 60, 29).holds
    assert rules.noticed_another(run, 91, 300).got == "never"
    assert not rules.noticed_another(run, 91, 300).holds


def test_who_is_cut_off_was_not_in_time() -> None:
    run = replace(made(ttft_s=(1.0, 1.0)), is_completed=np.array([True, False]))
    assert rules.in_time(run, 0, 200).got == "50.0%"


def test_a_request_that_lost_its_worker_is_counted() -> None:
    run = replace(made(), migrations=np.array([0, 2, 1, 0]))
    assert rules.none_moved(run) == Outcome("requests that lost their worker", "0", "2", False)


def test_a_sentence_tells_what_fails_or_all_that_holds() -> None:
    fails, holds = Outcome("a", "1", "2", False), Outcome("b", "at most 3", "3", True)
    assert rules.sentence([fails, holds]) == "a: 2 (1)"
    assert rules.sentence([holds, holds]) == "b: 3 (at most 3); b: 3 (at most 3)"


NOBODY = replace(made(ttft_s=(nan,) * 600), arrival_s=10.0 * np.arange(600), end_s=6000.0)
"""An hour and a half without any worker or decision; no request is answered."""

FLAPPING = replace(
    NOBODY,
    migrations=np.ones(600, np.int64),
    workers=tuple(
        worker(at, at, at + 55, at + 55, pool)
        for at in np.arange(0.0, 6000.0, 60.0).tolist()
        for pool in ("workers", "prefill", "decode")
        for _ in range(9)
    ),
)
"""Workers in plenty for 55 s of each minute."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=list(BY_NAME))
def test_every_claim_of_a_scenario_can_fail(scenario: ScalingScenario) -> None:
    """Moments that are no worker's time are hit by plenty that stay."""
    staying = replace(FLAPPING, workers=tuple(worker(pool="prefill") for _ in range(9)))
    runs = [scenario.judge(run) for run in (NOBODY, FLAPPING, staying)]
    for claims in zip(*runs, strict=True):
        assert not all(one.holds for one in claims), claims[0].claim


def test_scenarios_have_names_of_their_own_and_say_what_they_are() -> None:
    assert len(BY_NAME) == len(SCENARIOS)
    for scenario in SCENARIOS:
        assert scenario.reported and scenario.setup
        assert re.fullmatch(r"[a-z-]+", scenario.name)


# ---- what they are made for is what they notice --------------------------------------------------


def under_planner(name: str, **changes: object) -> list[Outcome]:
    """A scenario under a planner that is not as it should be."""
    scenario = BY_NAME[name]
    service = scenario.service()
    return scenario.judge(service.run_under([planner_with(service, **changes)]))


def planner_with(service: ScaledService, **changes: object) -> Planner:
    return make_planner(service, replace(planner_spec(service), **changes))  # type: ignore[arg-type]


def failed(outcomes: list[Outcome]) -> list[str]:
    return [one.claim for one in outcomes if not one.holds]


def test_samples_of_cold_workers_are_noticed() -> None:
    assert failed(under_planner("cold-samples", fpm_warmup_ms=0.0)) == ["workers at minute 44"]


def test_decisions_without_metrics_are_noticed() -> None:
    outcomes = under_planner("metrics-outage", max_metric_age_ms=1e9)
    assert failed(outcomes) == ["changes of the number of workers in minutes 11 to 12"]


def test_bursts_are_served_by_those_that_are_kept_for_them() -> None:
    """As the page says, and not with these arrivals alone."""
    scenario = BY_NAME["bursts"]
    service = scenario.service()
    run = service.run("planner")
    assert failed(scenario.judge(run)) == []
    assert run.num_workers(1800) == 4
    by_means = service.run_under([planner_with(service, burst_memory_ms=0.0)])
    assert failed(scenario.judge(by_means)) == ["in time of those who came in minutes 10 to 30"]


@pytest.mark.parametrize(("seed", "rps", "burst_s"), [(2, 5, 10), (4, 8, 6)])
def test_bursts_of_other_seeds_heights_and_lengths_are_served(
    seed: int, rps: float, burst_s: float
) -> None:
    load = [
        stretch
        for minute in range(30)
        for stretch in (
            Stretch(60 * (minute + 1) - burst_s, 0.3), Stretch(60 * (minute + 1), rps),
        )
    ]  # fmt: skip
    service = replace(BY_NAME["bursts"].service(), load=arrivals(load, seed=seed))
    assert failed(BY_NAME["bursts"].judge(service.run("planner"))) == []


def test_two_who_do_not_know_of_each_other_are_noticed() -> None:
    scenario = BY_NAME["two-controllers"]
    run = replace(scenario.service(), is_guarded=False).run("planner")
    assert len(failed(scenario.judge(run))) == 2


def test_the_guard_notices_another() -> None:
    scenario = BY_NAME["two-controllers"]
    assert failed(scenario.judge(scenario.service().run("hpa"))) == []


@pytest.mark.parametrize("name", ["silence", "flash-crowd", "crash"])
def test_who_never_decides_fails(name: str) -> None:
    scenario = BY_NAME[name]
    assert failed(scenario.judge(scenario.service().run_under([Hand("workers", [])])))


def test_workers_that_crash_are_lost_with_nobody_to_decide() -> None:
    run = BY_NAME["crash"].service().run_under([])
    assert run.num_workers(500) == 3 and run.num_workers(700) == 2


def test_arrivals_are_of_their_stretches() -> None:
    load = arrivals([Stretch(100, 5, isl=10, osl=20), Stretch(200, 0), Stretch(300, 1)], seed=3)
    at_s, late = load.arrival_ms / 1e3, load.arrival_ms >= 200e3
    assert (np.diff(at_s) >= 0).all() and not ((at_s > 100) & (at_s < 200)).any()
    assert 400 < (~late).sum() < 600 and 60 < late.sum() < 140
    assert set(load.input_tokens[~late]) == {10} and set(load.output_tokens[late]) == {100}
    again = arrivals([Stretch(100, 5, isl=10, osl=20), Stretch(200, 0), Stretch(300, 1)], seed=3)
    assert (again.arrival_ms == load.arrival_ms).all()


# ---- the page and the command --------------------------------------------------------------------

FAST = ("zero", "drain", "pending")


def sections(text: str) -> dict[str, str]:
    """A page's sections by title."""
    _, *parts = text.split("\n## ")
    return {part.partition("\n")[0]: part.rstrip("\n") for part in parts}


def test_the_page_is_current() -> None:
    """All of it in `make live`; here what takes no time."""
    tried = list(try_all([BY_NAME[name] for name in FAST], KINDS))
    ours, written = page(tried), PAGE.read_text()
    for name in FAST:
        assert sections(ours)[name] == sections(written)[name], "run `dynosim plan-cases --to`"
    assert list(sections(written)) == list(BY_NAME)
    head = ours.partition("\n| scenario")[0]
    assert written.startswith(head)
    for one in tried:
        verdict = "passes" if one.passes else "**fails**"
        (row,) = re.findall(rf"^\| \[{one.scenario.name}\].*$", written, re.MULTILINE)
        assert row.split(" | ")[1 + KINDS.index(one.kind)].removesuffix(" |") == verdict


@pytest.mark.live
def test_all_of_the_page_is_current() -> None:
    assert page(list(try_all(SCENARIOS, KINDS))) == PAGE.read_text()


def test_the_planner_passes_all() -> None:
    rows = re.findall(r"^\| \[([a-z-]+)\]\S* \| (\S+) ", PAGE.read_text(), re.MULTILINE)
    assert [name for name, verdict in rows if verdict != "passes"] == []


FAILING: dict[ControllerKind, bool] = {"planner": True, "hpa": False}


def one_tried(kind: ControllerKind) -> ScenarioVerdict:
    outcomes = (Outcome("a", "1", "1", True), Outcome("b", "2", "3", FAILING[kind]))
    return ScenarioVerdict(replace(SCENARIOS[0], remark="Mind it."), kind, outcomes)


def test_a_page_tells_who_fails_what() -> None:
    text = page([one_tried("planner"), one_tried("hpa")])
    assert "| [silence](#silence) | passes | **fails** |" in text
    assert "| b: 2 | 3 | **3** |" in text and "| a: 1 | 1 | 1 |" in text
    assert text.endswith("\nMind it.\n")
    row = tried_rows([one_tried("hpa")])[0]
    assert (row["scenario"], row["controller"], row["passes"]) == ("silence", "hpa", False)
    assert row["why"] == "b: 3 (2)" and row["claims"][1]["holds"] is False


def test_the_command_prints_verdicts_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tmp_path / "page.md"
    asked = ["plan-cases", "zero", "--controller", "planner,hpa"]
    assert main([*asked, "--to", str(told)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["scenario planner   hpa", "    zero passes  FAILS"]
    assert "zero, hpa: first token of the first request after minute 25: never" in out
    assert "| [zero](#zero) | passes | **fails** |" in told.read_text()
    assert main([*asked, "--to", str(told)]) == 2
    assert main([*asked, "--to", str(told), "--overwrite", "--fail-if-any"]) == 3
    capsys.readouterr()
    assert main(["plan-cases", "zero", "--controller", "planner", "--fail-if-any"]) == 0
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [one["passes"] for one in document["scenarios"]] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["never"], "no scenario never (there are silence, zero"),
        (["--controller", "planner,cron"], "--controller cron: no such controller"),
    ],
)
def test_what_there_is_not_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan-cases", *arguments]) == 2
    assert message in capsys.readouterr().err
