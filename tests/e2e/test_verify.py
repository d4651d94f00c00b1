"""`dynosim verify` on recordings that the twin made: what is predicted of them is right."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import verify_support as made

from dynosim.cli import main
from dynosim.verify import work

FAST = ["--level", "apriori,capacity", "--intervals", "3"]


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    inline_workers: None,
) -> Path:
    """Nothing is kept from other runs."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DYNOSIM_CACHE", str(folder))
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """One of each kind, an experiment that is shown apart, and what is no recording."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    made.write_log(folder / "log.jsonl.gz")
    made.write_experiments(
        folder / "list.json", made.experiment(), made.experiment("2", unfit="outputs end early")
    )
    made.write_curve(folder / "curve.json.gz")
    (folder / "README.md").write_text("# recordings\n")
    return folder


def document_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["verify", *arguments, "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_what_the_twin_made_is_predicted_without_error(
    recordings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = document_of([str(recordings), *FAST], capsys)
    rows = document["recordings"]
    assert [(row["recording"], row["level"]) for row in rows] == [
        ("curve", "apriori"),
        ("list: 1", "apriori"),
        ("list: 1", "capacity"),
        ("list: 2", "apriori"),
        ("list: 2", "capacity"),
        ("log", "apriori"),
        ("log", "capacity"),
    ]
    for row in rows:
        errors = [figure["error"] for figure in row["figures"]]
        assert errors and max(map(abs, errors)) < 1e-6, row["recording"]
        assert all(figure["low"] <= figure["high"] for figure in row["figures"])
        assert row["setup"]["model"] == made.MODEL and row["setup"]["hardware"] == "rtx_3090"
        # Equal times that differ in the last digit may change places: two requests of 120 at most.
        assert max(row["distances"].values(), default=0) < 0.02
        assert row["problem"] == ""
    log = rows[-2]
    assert log["blocks_measured"] == made.BLOCKS and log["block_error"] != 0
    assert rows[-1]["blocks_predicted"] == made.BLOCKS and rows[-1]["block_error"] is None
    counts = {(one["kind"], one["level"]): one["recordings"] for one in document["summary"]}
    assert counts[("experiment", "apriori")] == 1
    assert document["passed_over"] == 1 and document["missed"] == []


def test_an_engine_that_is_slower_than_predicted_is_named_as_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = made.write_log(tmp_path / "log.jsonl", slower=1.6)
    (row,) = document_of([str(log), "--level", "apriori", "--intervals", "0"], capsys)["recordings"]
    errors = {figure["name"]: figure["error"] for figure in row["figures"]}
    assert errors["mean_e2e_latency_ms"] == pytest.approx(1 / 1.6 - 1)
    assert all(figure["low"] is None and figure["covered"] is None for figure in row["figures"])
    assert main(["verify", str(log), "--level", "apriori", "--intervals", "3"]) == 0
    text = capsys.readouterr().out
    assert "-37.5 %" in text
    assert re.search(r"outside their interval:\n  log, a priori: mean_ttft_ms", text)


def cells(page: str, recording: str, level: str) -> list[list[str]]:
    """The rows of all tables of the page that tell of a recording at a level."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    return [row[2:] for row in rows if row[:2] == [recording, level]]


def test_the_page_has_the_figures_of_the_json(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "accuracy.md"
    document = document_of([str(recordings), *FAST, "--to", str(page)], capsys)
    text = page.read_text()
    assert f"Written on {document['date']} by dynosim {document['dynosim_version']}" in text
    assert str(tmp_path) not in text
    for row in document["recordings"]:
        level = {"apriori": "a priori", "capacity": "capacity given"}[row["level"]]
        summary, figures = cells(text, row["recording"], level)[:2] if not row["excluded"] else (
            cells(text, row["recording"], level)[0], None
        )  # fmt: skip
        covered = row["coverage"]
        assert f"{covered['covered']} of {covered['of']}" in summary
        if figures is not None:
            shown = [cell for cell in figures if cell]
            assert len(shown) == len(row["figures"])
            assert {float(cell.removesuffix(" %")) for cell in shown} == {
                round(100 * figure["error"], 1) for figure in row["figures"]
            }
    assert "list: 2 (outputs end early)" in text
    assert main(["verify", str(recordings), *FAST, "--to", str(page)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["verify", str(recordings), *FAST, "--to", str(page), "--overwrite"]) == 0
    assert page.read_text() == text


def test_an_earlier_state_stands_beside_the_present_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = made.write_log(tmp_path / "log.jsonl", slower=1.6)
    options = ["--level", "apriori", "--intervals", "0"]
    assert main(["verify", str(slow), *options, "--json"]) == 0
    before = tmp_path / "before.json"
    before.write_text(capsys.readouterr().out)
    made.write_log(slow)
    remarks = tmp_path / "remarks.md"
    remarks.write_text("## Why\n\nThe engine was slow.\n")
    page = tmp_path / "page.md"
    more = ["--to", str(page), "--before", str(before), "--remarks", str(remarks)]
    assert main(["verify", str(slow), *options, *more]) == 0
    text = page.read_text()
    assert "| log | a priori | -37.5 % → +0.0 % | -37.5 % → +0.0 %" in text.replace(
        "→ 0.0 %", "→ +0.0 %"
    )
    assert "## Why\n\nThe engine was slow." in text
    before.write_text("{}")
    assert main(["verify", str(slow), *options, "--to", str(tmp_path / "b.md"), *more[2:4]]) == 2
    assert "--before" in capsys.readouterr().err


def test_fitted_is_judged_on_what_the_fit_has_not_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = made.write_log(tmp_path / "log.jsonl", requests=100, slower=1.1)
    (row,) = document_of([str(log), "--level", "fitted"], capsys)["recordings"]
    errors = {figure["name"]: figure["error"] for figure in row["figures"]}
    assert abs(errors["mean_e2e_latency_ms"]) < 0.03
    assert row["coverage"]["of"] == len(row["figures"])
    assert row["causes"]["none"] > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--level", "blind"], "--level blind: no level (give some of apriori,capacity,fitted)"),
        (["--intervals", "1"], "--intervals 1"),
        (["--remarks", "gone.md"], "--remarks gone.md: cannot be read"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_that_can_be_read_is_bad_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "no recordings" in capsys.readouterr().err
    (tmp_path / "broken.json").write_text('[{"measured_ms": 1},\n')
    assert main(["verify", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "broken.json:2: not JSON" in error and "Traceback" not in error


def test_an_unreadable_file_is_listed_and_the_others_are_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_experiments(tmp_path / "list.json")
    (tmp_path / "bad.jsonl").write_text('{"setup": {}}\n{"arrival_ms": 0, "ttft_ms": -1}\n')
    assert main(["verify", str(tmp_path), "--level", "apriori", "--intervals", "0"]) == 0
    text = capsys.readouterr().out
    assert "list: 1" in text and f"unreadable: {tmp_path / 'bad.jsonl'}:2" in text


def test_a_log_without_a_gpu_takes_the_one_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = made.write_log(tmp_path / "log.jsonl", hardware=None)
    options = [str(log), "--level", "apriori", "--intervals", "0"]
    assert main(["verify", *options]) == 2
    assert "setup.hardware: missing (add it, or give --hardware)" in capsys.readouterr().err
    (row,) = document_of([*options, "--hardware", "rtx_3090"], capsys)["recordings"]
    assert max(abs(figure["error"]) for figure in row["figures"]) < 1e-6
    assert not any("another GPU" in note for note in row["notes"])
    nameless = [str(made.write_log(tmp_path / "nameless.jsonl", model=None)), *options[1:]]
    assert main(["verify", *nameless]) == 2
    assert "setup.model: missing (add it, or give --model)" in capsys.readouterr().err
    (named,) = document_of([*nameless, "--model", made.MODEL], capsys)["recordings"]
    assert max(abs(figure["error"]) for figure in named["figures"]) < 1e-6
    (row,) = document_of([*options, "--hardware", "h200_sxm"], capsys)["recordings"]
    assert any("recorded on another GPU" in note for note in row["notes"])


def test_what_is_finished_is_kept_when_it_is_interrupted(
    recordings: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    judged: list[str] = []
    judge = work.judge

    def interrupted(piece: work.Piece) -> Any:
        if len(judged) == 3:
            raise KeyboardInterrupt
        judged.append(piece.label + piece.level)
        return judge(piece)

    arguments = [str(recordings), *FAST, "--jobs", "1"]
    monkeypatch.setattr(work, "judge", interrupted)
    assert main(["verify", *arguments, "--json"]) == 130
    assert "3 of 7 verdicts are kept" in capsys.readouterr().err
    kept = sorted((own_cache / "verify").glob("*"))
    assert [path.suffix for path in kept] == [".json"] * 3
    for path in kept:
        json.loads(path.read_text())

    def counted(piece: work.Piece) -> Any:
        judged.append(piece.label + piece.level)
        return judge(piece)

    monkeypatch.setattr(work, "judge", counted)
    document = document_of(arguments, capsys)
    assert len(document["recordings"]) == len(judged) == len(set(judged)) == 7
    assert document_of(arguments, capsys) == document and len(judged) == 7
    kept[0].write_text("{}")  # damaged: judged anew
    assert document_of(arguments, capsys) == document and len(judged) == 8
    monkeypatch.setattr(work, "program_digest", lambda: "another state")
    assert document_of(arguments, capsys) == document and len(judged) == 15


@pytest.mark.live
def test_any_number_of_processes_says_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    worker_processes: None,
) -> None:
    made.write_experiments(tmp_path / "list.json")
    arguments = [str(tmp_path), *FAST]
    one = document_of([*arguments, "--jobs", "1"], capsys)
    monkeypatch.setenv("DYNOSIM_CACHE", str(tmp_path / "cache"))
    assert document_of([*arguments, "--jobs", "2"], capsys) == one


def test_curves_are_drawn_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write_curve(tmp_path / "my curve.json")
    made.write_experiments(tmp_path / "list.json")
    arguments = ["verify", str(tmp_path), "--intervals", "0", "--plots", str(tmp_path / "png")]
    assert main([*arguments, "--level", "apriori"]) == 0
    (picture,) = (tmp_path / "png").iterdir()
    assert picture.name == "my_curve.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main([*arguments, "--level", "apriori"]) == 2
    assert "--overwrite" in capsys.readouterr().err
