"""Router logs in several files: their bounds, what a killed process leaves, what fails."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest
from router_support import BLOCK, Doors, card, request, store

from dynosim.errors import ConfigError
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.make import IndexSpec
from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.refusals import InvalidRequestError
from dynosim.routerlog import rotating as rotating_log
from dynosim.routerlog.replay import file_name, log_files, replay_log
from dynosim.routerlog.rotating import RotatingLog

SETTINGS = RouterSpec(BLOCK, mode="kv")
SPEC = IndexSpec("compressed")


class Touchy:
    """A policy that fails at one request, after it has counted it."""

    def __init__(self, settings: RouterSpec, seed: int) -> None:
        self.count = 0

    def choose(self, request: Any, options: list[WorkerOption], now_ms: float) -> WorkerOption:
        self.count += 1
        if request.request_id == "bad":
            raise RuntimeError("not this one")
        return options[self.count % len(options)]

    def state(self) -> int:
        return self.count

    def restore(self, state: int) -> None:
        self.count = state


class Secretive(Touchy):
    """A policy whose state no JSON can hold, once it has seen something."""

    def state(self) -> Any:
        return object() if self.count else None


class SecretiveFromTheStart(Touchy):
    def state(self) -> Any:
        return object()


def opened(folder: Path, **options: Any) -> tuple[RotatingLog, Doors]:
    log = RotatingLog(folder, **{"max_bytes": 4000, **options})
    router = Doors(log.open(SETTINGS, SPEC))
    for worker_id in range(3):
        router.add_worker(card(worker_id))
    return log, router


def place(log: RotatingLog, router: Doors, names: range | list[Hashable]) -> list[int]:
    """Place requests that end at once, with events and room for rotations between them."""
    chosen = []
    for number, name in enumerate(names):
        decision = router.submit(request(name, [number % 5, number]), float(number))
        assert decision is not None
        store(router, decision.worker_id, [number % 5, number])
        chosen.append(decision.worker_id)
        router.free(name, float(number))
        log.maintain()
    return chosen


def test_only_the_last_files_are_kept_and_none_is_large(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_bytes=60_000, max_files=3)
    for lot in range(8):
        place(log, router, range(100 * lot, 100 * lot + 100))
        assert len(list(tmp_path.iterdir())) <= 3
    log.close()
    files = log_files(tmp_path)
    assert len(files) == 3 and files[0].name > file_name(2)
    assert all(file.stat().st_size <= 60_000 for file in files)
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_files == 3 and verdict.num_decisions > 100


def test_a_state_larger_than_a_file_still_makes_progress(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_bytes=100, max_files=2)
    place(log, router, range(200))
    log.close()
    assert len(log_files(tmp_path)) == 2
    newest = log_files(tmp_path)[-1]
    lines = newest.read_bytes().splitlines(keepends=True)
    state_at = next(i for i, line in enumerate(lines) if line.startswith(b'["state"'))
    assert newest.stat().st_size < 3 * sum(map(len, lines[: state_at + 1]))
    assert replay_log(tmp_path).is_equal


def test_a_line_that_was_cut_off_is_noted_and_the_rest_replayed(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_bytes=1 << 20)
    place(log, router, range(20))
    log.flush()
    file = log_files(tmp_path)[-1]
    whole = replay_log(file)
    file.write_bytes(file.read_bytes()[:-7])
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_entries == whole.num_entries - 1
    assert len(verdict.notes) == 1 and "cut off" in verdict.notes[0]
    assert f"{file}:{whole.num_entries + 1}" in verdict.notes[0]


def test_a_malformed_line_elsewhere_is_an_error(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_bytes=1 << 20)
    place(log, router, range(5))
    log.close()
    file = log_files(tmp_path)[-1]
    lines = file.read_bytes().splitlines()
    lines[3] = lines[3][:-7]
    file.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ConfigError, match=r"router-000001\.jsonl:4: not JSON"):
        replay_log(tmp_path)


def test_entries_reach_the_disk_when_they_are_due(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_bytes=1 << 20, flush_interval_s=0.0)
    place(log, router, range(3))
    verdict = replay_log(tmp_path)
    assert verdict.num_decisions == 3 and not verdict.notes


def test_a_new_process_goes_on_with_the_next_file_and_a_new_router(tmp_path: Path) -> None:
    log, router = opened(tmp_path)
    place(log, router, range(60))
    log.close()
    last = log_files(tmp_path)[-1]
    (tmp_path / f"{file_name(99)}.part").write_text("left by a killed process")
    log, router = opened(tmp_path)
    place(log, router, range(60))
    log.close()
    assert log_files(tmp_path)[-1].name > last.name
    assert not list(tmp_path.glob("*.part"))
    assert replay_log(tmp_path).is_equal


def test_a_file_that_does_not_begin_as_the_last_one_ended_is_found(tmp_path: Path) -> None:
    log, router = opened(tmp_path, max_files=100)
    place(log, router, range(60))
    log.close()
    first, second = log_files(tmp_path)[:2]
    lines = first.read_bytes().splitlines(keepends=True)
    lost = max(i for i, line in enumerate(lines) if line.startswith(b'["event"'))
    first.write_bytes(b"".join(lines[:lost] + lines[lost + 1 :]))
    assert replay_log(first).is_equal and replay_log(second).is_equal
    verdict = replay_log(tmp_path)
    assert not verdict.is_equal and verdict.file == second.name
    assert "the index differ" in verdict.derived


def test_after_a_failure_a_new_file_begins_at_once(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path, max_bytes=1 << 20)
    router = Doors(log.open(SETTINGS, SPEC, policy="test_rotating_log:Touchy"))
    for worker_id in range(3):
        router.add_worker(card(worker_id))
    place(log, router, range(5))
    with pytest.raises(RuntimeError, match="not this one"):
        router.submit(request("bad"), 5.0)
    log.maintain()
    place(log, router, range(10, 20))
    log.close()
    verdict = replay_log(tmp_path)
    assert verdict.is_equal and verdict.num_files == 2 and verdict.num_decisions == 15
    assert len(verdict.notes) == 1 and "RuntimeError: not this one" in verdict.notes[0]


def test_a_policy_that_cannot_be_told_is_refused_or_ends_the_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="state\\(\\) must return what JSON can hold"):
        RotatingLog(tmp_path).open(SETTINGS, SPEC, policy="test_rotating_log:SecretiveFromTheStart")
    log = RotatingLog(tmp_path, max_bytes=1000)
    router = Doors(log.open(SETTINGS, SPEC, policy="test_rotating_log:Secretive"))
    router.add_worker(card(0))
    place(log, router, range(40))
    assert log.failure is not None and "TypeError" in log.failure
    assert replay_log(tmp_path).is_equal


def test_a_full_disk_ends_the_log_not_the_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, router = opened(tmp_path, max_bytes=1 << 20)

    def fail(file: Any, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rotating_log._File, "write_line", fail)
    place(log, router, range(5))
    assert log.failure == f"{tmp_path}: the router log ends here: No space left on device"
    assert router.load.num_requests == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_files": 1}, "2 files"),
        ({"max_bytes": 0}, "1 byte"),
        ({"flush_interval_s": -1}, "0 s"),
    ],
)
def test_limits_that_make_no_sense_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        RotatingLog(tmp_path, **options)


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        RotatingLog(tmp_path / "log")


def test_an_index_of_extents_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot follow ExtentIndex"):
        RotatingLog(tmp_path).open(SETTINGS, IndexSpec("extents", extent_blocks=[1]))


def test_a_request_in_hand_cannot_come_again(tmp_path: Path) -> None:
    _, router = opened(tmp_path)
    router.submit(request("r"), 0.0)
    with pytest.raises(InvalidRequestError, match="'r' is in flight already"):
        router.submit(request("r"), 1.0)
    assert sum(router.load.num_requests) == 1


def test_a_dump_tells_of_blocks_behind_one_that_is_gone() -> None:
    index, copy = CompressedRadixIndex(), CompressedRadixIndex()
    index.apply(0, Stored(None, [1, 12, 13, 14], [5, 6, 7, 8]))
    index.apply(0, Removed([1, 13]))
    for event in index.dump(0):
        copy.apply(0, event)
    assert copy.size == index.size == 2
    for each in (index, copy):
        each.apply(0, Stored(None, [21], [5]))
        assert each.find_matches([5, 6, 7, 8]).by_worker() == {0: 2}
        each.apply(0, Stored(12, [23], [7]))
        assert each.find_matches([5, 6, 7, 8]).by_worker() == {0: 4}
