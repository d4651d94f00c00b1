"""What is shown of progress on a terminal. For other places see `test_sweep_progress`."""

import re

import pytest
from terminal import Clock, Terminal

from dynosim.experiment.progress import BAR_CHARACTERS, ProgressBar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_bar_is_shown_after_a_second_and_gone_in_the_end(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    with ProgressBar("requests") as bar:
        bar(0, 8000)
        clock.now_s += 0.9
        bar(1000, 8000)
        assert terminal.getvalue() == ""
        clock.now_s += 0.1
        bar(4000, 8000)
        assert terminal.last_bar() == "4,000/8,000 requests 0:00:01 left -:--:--"
        assert len(terminal.lines()) == 1
    assert terminal.lines() == []


def test_what_ends_sooner_shows_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    with ProgressBar("requests") as bar:
        clock.now_s += 0.9
        bar(8, 8)
        clock.now_s += 5.0
    assert terminal.getvalue() == ""


def test_a_bar_shows_what_was_told_last_and_the_time_left_at_the_pace_so_far(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    with ProgressBar("replays") as bar:
        for done in (1, 2, 3):
            clock.now_s += 60
            bar(done, 5, f"after [{done}]")
        clock.now_s += 1
    assert terminal.last_bar() == "3/5 replays 0:03:01 left 0:02:00 after [3]"


def test_where_a_line_is_too_narrow_the_note_is_cut(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch, columns=80)
    with ProgressBar("trials", stays=True) as bar:
        bar(3, 12)
        clock.now_s += 60
        bar(12, 12, "best tok/s/GPU 220.8: workers=1 mode=round-robin num_gpu_blocks=200")
    assert terminal.last_bar() == "12/12 trials 0:01:00 left 0:00:00 best tok/s/GPU 220.8…"
    assert len(terminal.lines()) == 1


@pytest.mark.parametrize(("done", "characters"), [(0, 0), (4, BAR_CHARACTERS // 2)])
def test_a_bar_is_as_full_as_much_is_done(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, done: int, characters: int
) -> None:
    terminal = Terminal(monkeypatch)
    with ProgressBar("requests") as bar:
        clock.now_s += 2
        bar(done, 8)
        assert len(re.findall("━", terminal.lines()[0])) == characters


def test_one_that_stays_is_there_at_once_and_left_there(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    with ProgressBar("trials", stays=True) as bar:
        bar(3, 4)
        assert terminal.last_bar() == "3/4 trials 0:00:00 left -:--:--"
        clock.now_s += 0.5
        bar(4, 4)
    (line,) = terminal.lines()
    assert line.startswith("4/4 trials ━")


def test_a_bar_is_gone_when_its_run_is_interrupted(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), ProgressBar("requests") as bar:
        clock.now_s += 2
        bar(4, 8)
        assert terminal.lines() != []
        raise KeyboardInterrupt
    assert terminal.lines() == []
