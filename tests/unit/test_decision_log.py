"""A controller's log on disk: rotated, and each file replayed on its own to equal decisions."""

import json
from pathlib import Path
from typing import Any

import pytest
from live_scaling_support import PLANNER, scaled_plan
from planner_support import CountingFrontend, observation, pool_state, report

from dynosim.build.live_control import live_controller
from dynosim.cli import main
from dynosim.config import RunConfig
from dynosim.config.loading import resolved
from dynosim.decisionlog.files import FORMAT, KIND, DecisionLogHeader, decision_files
from dynosim.decisionlog.replay import replay_decisions
from dynosim.decisionlog.rotating import DecisionLog, LoggedController
from dynosim.errors import ConfigError
from dynosim.planner.observation import Observation, Pass
from dynosim.workers.lifecycle import Phase

LEARNING = {
    "optimization_target": "sla", "step_times": "learned", "enable_load_scaling": True,
    "throughput_adjustment_interval_ms": 2000, "load_adjustment_interval_ms": 500,
    "fpm_warmup_ms": 0, "ttft_ms": 80.0, "itl_ms": 30.0, "max_endpoint": 4,
}  # fmt: skip


def logged(
    folder: Path, plan: RunConfig, *, max_bytes: int = 1 << 20, max_files: int = 4
) -> tuple[LoggedController, DecisionLog]:
    header = DecisionLogHeader(FORMAT, KIND, resolved(plan), 1.0)
    log = DecisionLog(folder, header, max_bytes=max_bytes, max_files=max_files)
    return LoggedController(lambda: live_controller(plan), log), log


class Story:
    """What a controller sees twice a second: load that comes and goes, and its own workers."""

    def __init__(self) -> None:
        self.frontend = CountingFrontend()
        self.num_workers = 1

    def seen(self, number: int) -> Observation:
        at_ms = 500.0 * (number + 1) + number / 3  # digits without end
        load = [0.0, 0.2, 0.7, 1.3, 0.5, 0.0][number // 8 % 6]
        self.frontend.serve(round(5 * load) + 1, ttft_ms=40 / 3 + 100 * load)
        passes = [
            Pass(10 + tokens / 20 + (kv + number) / 700, 1, tokens, 2, kv)
            for tokens, kv in ((0, 900), (200, 300), (100, 1200), (0, 100))
        ]
        kv, queued = round(3000 * load), round(2000 * load)
        reports = [
            report(i, "workers", at_ms=at_ms - 1.1, running=2, queued=queued, kv=kv, passes=passes)
            for i in range(self.num_workers)
        ]
        pools = [pool_state("workers", self.num_workers)]
        return observation(at_ms, pools, [self.frontend.scrape(at_ms - 1 / 3)], reports)


def tell(controller: LoggedController, num_looks: int, story: Story | None = None) -> list[int]:
    """Show it a story; returns the workers there were."""
    story = story or Story()
    sizes = []
    for number in range(num_looks):
        decision = controller.look(story.seen(number))
        if decision is not None:
            story.num_workers = decision.pools[0].target
        sizes.append(story.num_workers)
    return sizes


@pytest.mark.parametrize("planner", [PLANNER, LEARNING])
def test_every_decision_comes_out_again(tmp_path: Path, planner: dict[str, Any]) -> None:
    controller, log = logged(tmp_path, scaled_plan(planner))
    sizes = tell(controller, 100)
    log.close()
    assert len(set(sizes)) > 1, "the story must make it scale"
    verdict = replay_decisions(tmp_path)
    assert verdict.is_equal and verdict.num_entries == verdict.num_decisions == 100
    assert verdict == replay_decisions(tmp_path)


@pytest.mark.parametrize("planner", [PLANNER, LEARNING])
def test_files_that_follow_one_another_replay_each_on_its_own(
    tmp_path: Path, planner: dict[str, Any]
) -> None:
    controller, log = logged(tmp_path, scaled_plan(planner), max_bytes=200_000, max_files=3)
    tell(controller, 200)
    log.close()
    files = decision_files(tmp_path)
    assert len(files) == 3 and files[0].name > "decisions-000001.jsonl", "old ones are gone"
    assert all(file.stat().st_size < 2 * 200_000 for file in files)
    for file in files:
        assert json.loads(file.read_text().splitlines()[0])["num_before"] > 3
        assert replay_decisions(file).is_equal
    assert replay_decisions(tmp_path).num_files == 3


def test_a_new_file_begins_with_the_looks_before_it(tmp_path: Path) -> None:
    controller, log = logged(tmp_path, scaled_plan(), max_bytes=100_000, max_files=9)
    tell(controller, 40)
    log.close()
    first, second = (file.read_text().splitlines() for file in decision_files(tmp_path)[:2])
    num_before = json.loads(second[0])["num_before"]
    assert num_before > 0 and first[-num_before:] == second[1 : 1 + num_before]


def _first_file(folder: Path) -> tuple[Path, list[str]]:
    controller, log = logged(folder, scaled_plan())
    tell(controller, 30)
    log.close()
    (file,) = decision_files(folder)
    return file, file.read_text().splitlines()


def test_a_changed_digit_is_found_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, lines = _first_file(tmp_path)
    look = json.loads(lines[10])
    look["decision"]["pools"][0]["figures"]["load_max"] += 1e-9
    lines[10] = json.dumps(look)
    file.write_text("\n".join(lines) + "\n")
    assert main(["replay-log", str(tmp_path)]) == 1
    assert f"{file}:11: the decision at {look['seen']['now_ms']} ms differs" in (
        capsys.readouterr().out
    )
    assert main(["replay-log", str(file), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["equal"], verdict["line"]) == (False, 11)
    assert verdict["logged"] != verdict["derived"]


def test_the_command_recognises_a_decision_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _first_file(tmp_path)
    assert main(["replay-log", str(tmp_path)]) == 0
    assert "1 files, 30 decisions, 30 entries: all equal" in capsys.readouterr().out


def test_a_line_that_was_cut_off_is_passed_over_and_noted(tmp_path: Path) -> None:
    file, _ = _first_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-20])
    verdict = replay_decisions(file)
    assert verdict.is_equal and verdict.num_entries == 29
    assert verdict.notes == (f"{file}:31: the last line is cut off; it was passed over",)


@pytest.mark.parametrize(
    ("line", "text", "said"),
    [
        (0, '{"kind":"decisions","format":9,"plan":{},"speedup":1}', "written in format 9"),
        (0, '{"kind":"decisions","format":1}', "not the head of a decision log"),
        (5, '{"seen":{"now_ms":"soon"}}', ":6: no look of a decision log"),
        (5, "nothing", ":6: Expecting value"),
    ],
)
def test_what_no_controller_writes_is_named_by_its_line(
    tmp_path: Path, line: int, text: str, said: str
) -> None:
    file, lines = _first_file(tmp_path)
    lines[line] = text
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match=said):
        replay_decisions(file)
    assert main(["replay-log", str(file)]) == 2


def test_a_disk_that_fails_costs_looks_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller, log = logged(tmp_path, scaled_plan())
    story = Story()

    def full(self: DecisionLog, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    for number in range(30):
        with monkeypatch.context() as patch:
            if 10 <= number < 20:
                patch.setattr(DecisionLog, "_write", full)
            decision = controller.look(story.seen(number))
            assert decision is not None
            assert (log.failure is not None) == (10 <= number < 20)
    log.close()
    verdict = replay_decisions(tmp_path)
    assert verdict.is_equal and verdict.num_files == 2
    assert verdict.num_entries == 20
    assert log.failure is None


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        logged(tmp_path / "file" / "log", scaled_plan())


def test_phases_survive_the_file(tmp_path: Path) -> None:
    _, lines = _first_file(tmp_path)
    (worker,) = json.loads(lines[1])["seen"]["pools"][0]["workers"]
    assert worker["phase"] == Phase.READY.value
