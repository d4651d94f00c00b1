"""`make fuzz` draws ten times the examples, from a seed that draws them again."""

from pathlib import Path

import pytest
from fuzz import main, property_files
from shared_data import ROOT

LAWS = """
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

drawn = Path(__file__).with_suffix(".txt")

@pytest.mark.parametrize("side", ["left", "right"])
@settings(max_examples=4)
@given(number=st.floats(0, 1))
def test_law(side: str, number: float) -> None:
    with drawn.open("a") as log:
        print(side, number, file=log)

def test_no_law() -> None:
    raise AssertionError("left out")
"""


def drawn_with(folder: Path, *options: str) -> list[str]:
    folder.mkdir()
    (folder / "test_laws.py").write_text(LAWS)
    assert main([*options, "--jobs", "0", str(folder / "test_laws.py")]) == 0
    return (folder / "test_laws.txt").read_text().splitlines()


@pytest.mark.live
def test_a_seed_draws_ten_times_the_examples_and_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "1")
    first = drawn_with(tmp_path / "first", "--seed", "11")
    assert [side for line in first for side in line.split()[:1]] == ["left"] * 40 + ["right"] * 40
    assert capfd.readouterr().out.startswith("seed 11: draw the same again with make fuzz")
    assert drawn_with(tmp_path / "again", "--seed", "11") == first


def test_all_files_with_laws_are_fuzzed() -> None:
    files = property_files(ROOT)
    assert {f"tests/property/test_{name}.py" for name in ("twin", "router_laws")} <= set(files)
    assert "tests/unit/test_indexer_approximate.py" in files
    assert "tests/unit/test_hashing.py" not in files
