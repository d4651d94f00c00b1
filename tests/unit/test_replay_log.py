"""Router logs on disk: whatever is altered in an answer is found, and where."""

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from router_support import BLOCK, Doors, card, request, store

from dynosim.errors import ConfigError
from dynosim.indexer.make import IndexSpec
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.log.recorder import logged_router
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.refusals import RequestRefusedError
from dynosim.routerlog.replay import (
    FORMAT,
    LogHeader,
    LogWriter,
    file_name,
    file_number,
    log_files,
    replay_log,
)

SETTINGS = RouterSpec(
    BLOCK,
    mode="kv",
    cost=CostSpec(0.5, 0.25, 2.0, active_request_weight=0.125, temperature=0.5),
    load=LoadSpec(track_output_blocks=True, stale_after_ms=60.0),
    classes=(PolicyClass("a", "wspt", 64, 100, request_queue_limit_per_worker=1),),
    busy=BusyThresholds(active_decode_blocks_threshold=0.5),
    affinity=AffinitySpec(50.0, "soft"),
    seed=3,
)
SPEC = IndexSpec("compressed")
ANSWER = {"arrive": 3, "release": 2, "stale": 2, "best": 3, "loads": 3}  # where entries tell it


class Slow:
    """Prefill of 1 ms a token."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        return float(new_tokens)


def logged(path: Path, inputs: Callable[[Doors], None], **options: Any) -> list[Any]:
    """Give a router its inputs and write its log; returns the log's documents."""
    estimator: PrefillEstimator | None = options.pop("estimator", None)
    settings = options.pop("settings", SETTINGS)
    writer = LogWriter(path, options.pop("policy", None))
    sink = writer.open(settings, SPEC, estimator is not None)
    router = Doors(logged_router(sink, settings, SPEC.make(), estimator=estimator))
    inputs(router)
    writer.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def every_kind(router: Doors) -> None:
    """Placements, a wait, refusals of all sorts, releases, stale requests, and questions."""
    for worker_id in range(2):
        router.add_worker(card(worker_id))
        store(router, worker_id, range(worker_id + 1))
    nowhere, *pinned = (Constraints(pinned_worker=worker_id) for worker_id in (9, 0, 1))
    waits = [request(f"w{n}", [40 + n, 50], session_id="s") for n in range(3)]
    for number, made in enumerate(
        [
            request("a", [0, 1, 2], session_id="s"),
            request("b", range(20, 28), constraints=pinned[0]),
            request("c", range(30, 38), constraints=pinned[1]),
            request("lost", constraints=nowhere),
            *waits,
        ]
    ):
        with contextlib.suppress(RequestRefusedError):
            router.submit(made, float(number))
    with contextlib.suppress(RequestRefusedError):
        router.best_worker([], now_ms=7.0)
    router.first_token("a", 8.0)
    router.output_tokens("a", 17, 9.0)
    router.first_token("b", 10.0)
    router.first_token("c", 10.0)
    router.release(11.0)
    router.best_worker(range(40), now_ms=12.0)
    router.best_worker(range(40), "best", update_states=True, now_ms=13.0)
    router.get_potential_loads(range(40), 14.0)
    router.unbind_session("s")
    router.drop_stale(71.0)
    router.remove_worker(0)
    router.free("best", 72.0)
    router.submit(request("last"), 73.0)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where plain values stand inside a document."""
    if isinstance(value, dict | list):
        keys = value if isinstance(value, dict) else range(len(value))
        for key in keys:
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def altered(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    return value + "x" if isinstance(value, str) else value + 1


def with_leaf_altered(document: Any, path: tuple[Any, ...]) -> Any:
    copy = json.loads(json.dumps(document))
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = altered(inside[path[-1]])
    return copy


def write(path: Path, documents: list[Any]) -> None:
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


@pytest.mark.parametrize("estimator", [None, Slow()])
def test_an_answer_altered_in_any_field_is_found_with_its_line_and_time(
    tmp_path: Path, estimator: PrefillEstimator | None
) -> None:
    path = tmp_path / "log.jsonl"
    documents = logged(path, every_kind, estimator=estimator)
    verdict = replay_log(path)
    assert verdict.is_equal and verdict.num_entries == len(documents) - 1
    assert (verdict.line, verdict.file, verdict.num_files, verdict.notes) == (None, None, 1, ())
    seen = set()
    for at, entry in enumerate(documents[1:], 1):
        if entry[0] not in ANSWER:
            continue
        answer = ANSWER[entry[0]]
        for leaf in leaves(entry[answer], (answer,)):
            changed = with_leaf_altered(entry, leaf)
            write(path, [*documents[:at], changed, *documents[at + 1 :]])
            found = replay_log(path)
            assert not found.is_equal
            assert (found.line, found.now_ms, found.num_entries) == (at + 1, entry[1], at)
            assert (found.logged, found.derived) == (changed[answer], entry[answer])
            seen.add((entry[0], type(entry[answer]).__name__))
    assert seen == {
        ("arrive", "list"), ("arrive", "dict"), ("arrive", "NoneType"), ("release", "list"),
        ("stale", "list"), ("best", "list"), ("best", "dict"), ("loads", "list"),
    }  # fmt: skip


def test_every_input_is_logged_once_in_order_with_its_time(tmp_path: Path) -> None:
    """What has no time of its own has that of the call before."""
    documents = logged(tmp_path / "log.jsonl", every_kind, estimator=Slow())
    assert [(entry[0], entry[1]) for entry in documents[1:]] == [
        ("join", 0.0), ("event", 0.0), ("join", 0.0), ("event", 0.0),
        *(("arrive", float(at_ms)) for at_ms in range(7)),
        ("best", 7.0), ("first", 8.0), ("tokens", 9.0), ("first", 10.0), ("first", 10.0),
        ("release", 11.0), ("best", 12.0), ("best", 13.0), ("loads", 14.0), ("unbind", 14.0),
        ("stale", 71.0), ("leave", 71.0), ("end", 72.0), ("arrive", 73.0),
    ]  # fmt: skip
    by_kind = {entry[0]: entry[2:] for entry in documents[1:]}
    assert by_kind["tokens"] == ["a", 17] and by_kind["unbind"] == ["s"]
    assert (by_kind["leave"], by_kind["end"]) == ([0], ["best"])
    placed = [e for e in documents[1:] if e[0] == "arrive" and isinstance(e[3], list)]
    for entry in placed:  # each tells how long its prefill was taken to last
        assert entry[4:] == [[float(entry[2]["input_tokens"] - entry[3][6])]]
    assert len(placed) == 4
    asked = [entry for entry in documents[1:] if entry[0] == "best"]
    assert [entry[2] for entry in asked] == [
        [[], None, False, None],
        [list(range(40)), None, False, None],
        [list(range(40)), "best", True, None],
    ]
    assert [len(entry) for entry in asked] == [4, 4, 5]  # only the last one placed anything


def test_decisions_are_counted_one_for_each_request(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    documents = logged(path, every_kind)
    kinds = [entry[0] for entry in documents[1:]]
    released = sum(len(entry[2]) for entry in documents[1:] if entry[0] == "release")
    assert released == 2 and kinds.count("arrive") == 8
    wanted = kinds.count("arrive") + kinds.count("best") + kinds.count("stale") + released
    assert replay_log(path).num_decisions == wanted
    cut = kinds.index("release") + 2  # the release is altered: it counts as looked at
    write(path, [*documents[: cut - 1], with_leaf_altered(documents[cut - 1], (2, 0, 1))])
    before = [kind for kind in kinds[: cut - 1] if kind in ("arrive", "best")]
    assert replay_log(path).num_decisions == len(before) + released


def test_a_time_that_was_altered_changes_what_depends_on_it(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    documents = logged(path, every_kind)
    at = next(at for at, entry in enumerate(documents[1:], 1) if entry[0] == "release")
    write(path, [*documents[:at], with_leaf_altered(documents[at], (1,)), *documents[at + 1 :]])
    assert replay_log(path).line == at + 1  # of the time spent waiting


@pytest.mark.parametrize("field", ["block_size", "mode", "cost", "classes", "busy", "seed"])
def test_a_header_altered_in_what_counts_is_another_router(tmp_path: Path, field: str) -> None:
    path = tmp_path / "log.jsonl"
    header, *entries = logged(path, every_kind)
    others = {
        "block_size": 8,
        "mode": "round-robin",
        "cost": {**header["settings"]["cost"], "overlap_score_credit": 0.0},
        "classes": [],
        "busy": {"active_prefill_tokens_threshold": 0},
        "seed": 5,
    }
    header["settings"][field] = others[field]
    write(path, [header, *entries])
    if field == "block_size":
        with pytest.raises(ConfigError, match=rf"{path}:2: worker 0: KV block size 16 differs"):
            replay_log(path)
    else:
        assert not replay_log(path).is_equal


def test_every_field_of_a_header_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    header, *_ = logged(path, every_kind, estimator=Slow(), policy="router_streams:Evenly")
    assert header["format"] == FORMAT == 1
    assert (header["policy"], header["has_estimator"]) == ("router_streams:Evenly", True)
    assert (header["number"], header["follows"]) == (None, False)
    assert header["settings"]["affinity"] == {"ttl_ms": 50.0, "mode": "soft"}
    for spec, settings in (
        (IndexSpec("extents", [1, 2, 3]), RouterSpec(8, mode="kv")),
        (IndexSpec("approximate", ttl_ms=5.0, capacity_blocks=7), SETTINGS),
    ):
        router = LogHeader(FORMAT, settings, spec).make_router()
        assert router.settings == settings and type(router.index) is type(spec.make())
        assert router.estimator is None and router.policy is None
        assert router.load.active._key_blocks == spec.extent_blocks
    router = LogHeader(FORMAT, SETTINGS, SPEC, "router_streams:Evenly", True).make_router()
    assert router.load.decays
    assert type(router.policy).__name__ == "Evenly" and router.policy.count == 3  # type: ignore[union-attr]


def test_a_log_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    header, *entries = logged(path, every_kind)
    write(path, [{**header, "format": 2}, *entries])
    with pytest.raises(ConfigError, match=rf"{path}:1: written in format 2, this version reads 1"):
        replay_log(path)


def test_a_line_that_no_router_wrote_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    documents = logged(path, every_kind)
    for bad, message in (("[]", "not an entry"), ('["leave", 1.0]', "malformed leave entry")):
        lines = [json.dumps(document) for document in documents]
        path.write_text("\n".join([*lines[:3], bad, *lines[3:]]) + "\n")
        with pytest.raises(ConfigError, match=rf"{path}:4: {message}"):
            replay_log(path)
    path.write_text("\n".join([*lines[:3], "{", *lines[3:]]) + "\n")
    with pytest.raises(ConfigError, match=rf"{path}:4: not JSON"):
        replay_log(path)


def test_only_a_last_line_without_its_end_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    documents = logged(path, every_kind)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    verdict = replay_log(path)
    assert verdict.is_equal and verdict.num_entries == len(documents) - 2
    assert verdict.notes == (
        f"{path}:{len(documents)}: the last line is cut off; it was passed over",
    )
    path.write_bytes(whole[:-5] + b"\n")
    with pytest.raises(ConfigError, match=f"{path}:{len(documents)}: not JSON"):
        replay_log(path)
    path.write_bytes(whole.split(b"\n")[0][:-5])
    with pytest.raises(ConfigError, match=f"{path}:1: not JSON"):
        replay_log(path)


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{tmp_path}: cannot be written: Is a directory"):
        LogWriter(tmp_path)


def test_files_of_a_log_go_by_their_numbers(tmp_path: Path) -> None:
    assert file_name(7) == "router-000007.jsonl" and file_name(1_000_000) == "router-1000000.jsonl"
    for number in (1_000_000, 7, 999_999):
        (tmp_path / file_name(number)).touch()
    files = log_files(tmp_path)
    assert [file_number(path) for path in files] == [7, 999_999, 1_000_000]
    assert log_files(tmp_path) == [tmp_path / file_name(n) for n in (7, 999_999, 1_000_000)]
    for name in ("router-old.jsonl", "router-.jsonl", "router-1²3.jsonl", "router--1.jsonl"):
        with pytest.raises(ConfigError, match="not named as a file of a router log, such as"):
            file_number(tmp_path / name)
