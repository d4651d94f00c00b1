"""The runner of the mutants, on a tree of one module and one list."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mutant_lists import ListError, Mutant, check_all, load_lists, note_killers, select
from mutant_trials import seconds_by_file
from run import NOT_RUN, SURVIVED, Result, main, score_table
from shared_data import ROOT

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="the runner asks git for files")

CODE = """
def total(prices: list[int]) -> int:
    return sum(prices)


def share(part: int, whole: int) -> float:
    while part > whole:
        part -= whole
    return part / whole
"""
TESTS = """
import os
from dynosim.shop.prices import share, total

def test_total():
    assert total([1, 2]) == 3

def test_share():
    assert share(5, 4) == 0.25
    while "HANG" in os.environ:
        pass
"""
LIST = """
- id: P1
  file: dynosim/shop/prices.py
  what: counts for adds
  old: |2-
        return sum(prices)
  new: |2-
        return len(prices)

- id: P2
  file: dynosim/shop/prices.py
  what: a whole is no share
  old: part > whole
  new: part >= whole

- id: P3
  file: dynosim/shop/prices.py
  what: the same in other words
  old: sum(prices)
  new: sum(list(prices))
  equivalent: a list has the same sum
"""
ENDLESS = """
- id: P4
  file: dynosim/shop/prices.py
  what: never ends
  old: part -= whole
  new: part -= 0
  tests: [tests/test_shop.py::test_share, tests/test_gone.py]
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a list of mutants; what the runner needs of the machine is in it, too."""
    scratch = tmp_path / "scratch"
    for name, text in {
        "dynosim/shop/prices.py": CODE,
        "tests/test_shop.py": TESTS,
        "tests/mutants/shop.yaml": LIST,
        "tests/mutants/tests_by_package.yaml": "dynosim: [tests/test_*.py]\n",
    }.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    scratch.mkdir()
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # faster
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path / "tree", check=True)
    return tmp_path / "tree"


def run(tree: Path, *options: str) -> int:
    return main(["--root", str(tree), "--jobs", "1", *options])


def test_a_mutant_is_killed_by_a_failing_test_and_survives_without(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tree, "--json", str(tree / "score.json"), "--learn") == 1
    found: dict[str, Any] = {
        entry["id"]: entry for entry in json.loads((tree / "score.json").read_text())["mutants"]
    }
    assert (found["P1"]["status"], found["P2"]["status"]) == ("killed", SURVIVED)
    assert found["P1"]["detail"] == "tests/test_shop.py::test_total"
    assert (found["P3"]["status"], found["P3"]["detail"]) == (
        "equivalent",
        "a list has the same sum",
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["all", "1", "1", "1", "0", "50%"]
    known = {mutant.id: mutant.tests for mutant in load_lists(tree / "tests" / "mutants")}
    assert known == {"P1": ("tests/test_shop.py::test_total",), "P2": (), "P3": ()}
    assert (tree / "dynosim/shop/prices.py").read_text() == CODE


def test_a_mutant_that_does_not_end_is_ended_and_counts_as_killed(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "tests/mutants/shop.yaml").write_text(ENDLESS)
    assert run(tree, "--cap", "0") == 0
    output = capsys.readouterr().out
    assert "timeout    P4" in output
    assert output.splitlines()[-1].split() == ["all", "1", "0", "0", "0", "100%"]


def test_what_the_time_does_not_suffice_for_is_not_run_and_not_killed(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tree, "--minutes", "0") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if NOT_RUN in line][:2] == [
        ["not", "run", "P1"],
        ["not", "run", "P2"],
    ]
    assert lines[-1].split() == ["all", "0", "0", "1", "2", "-"]


def test_tests_that_fail_without_a_mutant_are_refused(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "tests/test_shop.py").write_text(TESTS.replace("0.25", "0.5"))
    assert run(tree) == 2
    assert "tests fail without a mutant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("sum(price)", "0", "dynosim/shop/prices.py: mutant P9 is stale"),
        ("part", "whole", "dynosim/shop/prices.py: mutant P9 is ambiguous: .* there 4 times"),
        ("sum(prices)", "sum(", "dynosim/shop/prices.py: mutant P9 is not Python"),
        ("sum(prices)", "sum(prices)", "dynosim/shop/prices.py: mutant P9 changes nothing"),
    ],
)
def test_an_entry_that_does_not_fit_the_tree_is_named(old: str, new: str, fault: str) -> None:
    with pytest.raises(ListError, match=fault):
        Mutant("P9", "shop", "dynosim/shop/prices.py", "?", old, new).applied_to(CODE)


def test_all_entries_that_do_not_fit_are_told_of_at_once(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tree / "dynosim/shop/prices.py"
    code.write_text(CODE.replace("prices", "costs").replace("whole", "all_of_it"))
    assert run(tree) == 2
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["P1", "P2", "P3"]
    assert run(tree, "--only", "P9") == 2
    assert "called P9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (LIST + LIST, "several mutants: P1, P2, P3"),
        ("- {id: P1, file: a.py, what: w, old: a, new: b, test: t}", "unknown .'test'."),
        ("- {id: P1, file: a.py, what: w, old: a}", "missing .'new'."),
    ],
)
def test_a_malformed_list_is_refused(tree: Path, text: str, fault: str) -> None:
    (tree / "tests/mutants/shop.yaml").write_text(text)
    with pytest.raises(ListError, match=fault):
        load_lists(tree / "tests" / "mutants")


def test_every_mutant_of_the_lists_fits_the_tree() -> None:
    """What it would replace is there, once, and what comes of it is Python."""
    check_all(ROOT, load_lists(ROOT / "tests" / "mutants"))


def test_mutants_are_chosen_by_id_list_or_package() -> None:
    mutants = [
        Mutant("A1", "one", "dynosim/router/a.py", "", "", ""),
        Mutant("A2", "one", "dynosim/top.py", "", "", ""),
        Mutant("B1", "two", "runtime/dynosim_runtime/b/c.py", "", "", ""),
    ]
    for names, chosen in {
        ("one",): "A1 A2", ("router",): "A1", ("dynosim",): "A2", ("runtime", "A2"): "A2 B1",
        (): "A1 A2 B1",
    }.items():  # fmt: skip
        assert " ".join(mutant.id for mutant in select(mutants, list(names))) == chosen


def test_noted_killers_replace_the_tests_of_their_mutants_only(tree: Path) -> None:
    path = tree / "tests/mutants/shop.yaml"
    path.write_text(LIST + ENDLESS)
    note_killers(path.parent, {"P4": "tests/a.py::b[1-[x], y]", "P1": "tests/c.py"})
    known = {mutant.id: mutant for mutant in load_lists(path.parent)}
    assert [m.tests for m in known.values()] == [("tests/c.py",), (), (), ("tests/a.py::b",)]
    assert all(mutant.applied_to(CODE) for mutant in known.values())
    text = path.read_text()
    assert "  tests: [tests/c.py]\n\n- id: P2" in text
    note_killers(path.parent, {"P4": "tests/a.py::b"})
    assert path.read_text() == text


def test_the_score_leaves_equivalent_and_unreached_mutants_out() -> None:
    mutant = Mutant("A1", "one", "dynosim/router/a.py", "", "", "")
    results = [Result(mutant, s) for s in ("killed", "timeout", SURVIVED, NOT_RUN, "equivalent")]
    assert [row.split()[1:] for row in score_table(results)[1:]] == [
        ["2", "1", "1", "1", "67%"]
    ] * 2


def test_seconds_of_a_file_are_those_of_all_its_tests() -> None:
    output = (
        "1.50s call     tests/a.py::b[c]\n0.25s setup    tests/a.py::d\n2.0s call  tests/e.py::f\n"
    )
    assert seconds_by_file(output) == {"tests/a.py": 1.75, "tests/e.py": 2.0}


def test_an_interrupted_run_prints_its_score_and_leaves_nothing_behind(tree: Path) -> None:
    scratch = tree.parent / "scratch"
    command = [sys.executable, ROOT / "tests/mutants/run.py", "--root", tree, "--jobs", "1"]
    with subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, "HANG": "1", "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "without a mutant" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
    assert process.returncode == 130
    assert "interrupted" in rest and "not run" in rest
    assert list(scratch.iterdir()) == []
