"""What a sweep says of its progress, on a terminal and elsewhere."""

import re

import pytest
from terminal import Clock, Terminal

from dynosim.experiment.progress import PLAIN_LINES
from dynosim.sweep.progress import Progress

PER_GPU = "output_tok_s_per_gpu"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def counts(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"^(\d+)/", text, re.M)]


@pytest.mark.parametrize(
    ("total", "done", "lines"),
    [
        (20, 0, list(range(2, 21, 2))),
        (5, 0, [1, 2, 3, 4, 5]),
        (23, 0, [*range(2, 23, 2), 23]),
        (30, 10, list(range(12, 31, 2))),
        (11, 10, [11]),
        (9, 9, []),
    ],
)
def test_about_ten_lines_and_the_last_one(
    clock: Clock, capsys: pytest.CaptureFixture[str], total: int, done: int, lines: list[int]
) -> None:
    with Progress(total=total, done=done, objective=PER_GPU, is_max=True) as progress:
        for _ in range(total - done):
            progress.advance({}, {})
    shown = capsys.readouterr()
    assert counts(shown.err) == lines and shown.out == ""
    assert len(lines) <= PLAIN_LINES + 2
    assert all(f"/{total} trials, " in line for line in shown.err.splitlines())


def test_the_time_left_is_that_of_the_trials_left_at_the_pace_so_far(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 14, 4 were there already: the first 2 took 30 s, so 8 more take 120 s."""
    with Progress(total=14, done=4, objective="x", is_max=True, unit="intervals") as progress:
        clock.now_s += 30
        progress.advance({}, {})
        progress.advance({}, {})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "5/14 intervals, 30 s, about 270 s left",
        "6/14 intervals, 30 s, about 120 s left",
    ]


@pytest.mark.parametrize(("is_max", "best"), [(True, 3), (False, 1)])
def test_the_best_so_far_is_the_first_of_its_value(
    clock: Clock, capsys: pytest.CaptureFixture[str], is_max: bool, best: int
) -> None:
    values = [2.0, 1.0, None, 3.0, 1.0, 3.0]
    with Progress(total=6, done=0, objective="a", is_max=is_max) as progress:
        for number, value in enumerate(values):
            progress.advance({"engine.max_num_seqs": number, "x": "y"}, {"a": value})
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"  best a {values[best]:.1f}: max_num_seqs={best} x=y")


def test_throughput_goes_by_its_unit_and_nothing_measured_by_no_name(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(total=2, done=0, objective=PER_GPU, is_max=True) as progress:
        progress.advance({"w": 1}, {PER_GPU: None})
        progress.advance({"w": 2}, {PER_GPU: 12345.678})
    first, second = capsys.readouterr().err.splitlines()
    assert first == "1/2 trials, 0 s, about 0 s left"
    assert second == "2/2 trials, 0 s, about 0 s left  best tok/s/GPU 12,345.7: w=2"


def test_on_a_terminal_one_line_says_so_from_the_start_and_stays(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    with Progress(total=4, done=1, objective="a", is_max=True, unit="intervals") as progress:
        assert terminal.lines()[0].startswith("1/4 intervals ")
        for value in (2.0, 5.0, 3.0):
            clock.now_s += 60
            progress.advance({"w": value}, {"a": value})
    assert terminal.last_bar() == "4/4 intervals 0:03:00 left 0:00:00 best a 5.0: w=5.0"
    assert len(terminal.lines()) == 1
