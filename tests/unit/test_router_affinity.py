"""Where sessions live, and when that is forgotten."""

from dynosim.router.affinity import SessionAffinity
from dynosim.router.workers import Candidate

HERE, THERE = Candidate(1, 0), Candidate(2, 3)


def test_a_session_lives_where_its_last_request_went() -> None:
    affinity = SessionAffinity(10.0)
    assert affinity.lookup("s", 0.0) is None
    affinity.begin("s", HERE, 0.0)
    assert affinity.lookup("s", 0.0) == HERE
    affinity.begin("s", THERE, 1.0)
    assert affinity.lookup("s", 1.0) == THERE
    affinity.end("s", 1.0)
    assert affinity.lookup("s", 1.0) == THERE


def test_it_is_forgotten_exactly_when_it_was_idle_for_so_long() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("s", HERE, 0.0)
    assert affinity.lookup("s", 1e9) == HERE  # in use
    affinity.end("s", 5.0)
    assert affinity.lookup("s", 14.9) == HERE
    assert affinity.lookup("s", 15.0) is None
    assert len(affinity) == 0


def test_with_two_requests_in_hand_the_end_of_one_does_not_make_it_idle() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("s", HERE, 0.0)
    affinity.begin("s", HERE, 0.0)
    affinity.end("s", 1.0)
    assert affinity.lookup("s", 100.0) == HERE
    affinity.end("s", 101.0)
    assert affinity.lookup("s", 110.9) == HERE
    assert affinity.lookup("s", 111.0) is None


def test_a_new_request_ends_the_idle_time() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("s", HERE, 0.0)
    affinity.end("s", 0.0)
    affinity.begin("s", HERE, 9.0)
    assert affinity.lookup("s", 50.0) == HERE
    affinity.end("s", 51.0)
    assert affinity.lookup("s", 60.0) == HERE


def test_idle_sessions_are_forgotten_in_the_order_in_which_they_became_idle() -> None:
    """Whatever the order in which they began."""
    affinity = SessionAffinity(10.0)
    for session_id in ("first", "second", "third"):
        affinity.begin(session_id, HERE, 0.0)
    for at_ms, session_id in ((1.0, "third"), (2.0, "first"), (3.0, "second")):
        affinity.end(session_id, at_ms)
    affinity.begin("third", HERE, 4.0)
    affinity.end("third", 4.0)
    left = []
    for now_ms in (11.9, 12.0, 13.0, 14.0):
        affinity.lookup("nobody", now_ms)
        left.append(len(affinity))
    assert left == [3, 2, 1, 0]


def test_a_request_lost_with_a_worker_counts_from_the_last_end_that_was_heard_of() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("z moved", HERE, 0.0)
    affinity.begin("z moved", THERE, 0.0)
    affinity.begin("a other", HERE, 0.0)
    affinity.end("z moved", 3.0)
    affinity.end("a other", 5.0)
    affinity.lose("z moved")
    assert [affinity.lookup("z moved", at_ms) for at_ms in (12.9, 13.0)] == [THERE, None]
    assert [affinity.lookup("a other", at_ms) for at_ms in (14.9, 15.0)] == [HERE, None]


def test_a_session_in_use_survives_the_loss_of_one_request() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("s", HERE, 0.0)
    for _ in range(2):
        affinity.begin("s", THERE, 0.0)
    affinity.lose("s")
    affinity.end("s", 1.0)
    assert affinity.lookup("s", 100.0) == THERE
    affinity.end("s", 100.0)
    assert affinity.lookup("s", 110.0) is None


def test_a_worker_takes_its_own_sessions_along_and_no_others() -> None:
    affinity = SessionAffinity(10.0)
    affinity.begin("a", HERE, 0.0)
    affinity.begin("b", THERE, 0.0)
    affinity.begin("c", HERE, 0.0)
    affinity.end("c", 0.0)
    assert affinity.remove_worker(HERE.worker_id) == ["a", "c"]
    assert [affinity.lookup(name, 1.0) for name in "abc"] == [None, THERE, None]


def test_an_end_too_many_begins_the_idle_time_anew() -> None:
    affinity = SessionAffinity(10.0)
    for session_id in ("s", "t"):
        affinity.begin(session_id, HERE, 0.0)
        affinity.end(session_id, 0.0)
    affinity.end("s", 5.0)
    assert affinity.lookup("t", 10.0) is None
    assert [affinity.lookup("s", at_ms) for at_ms in (14.9, 15.0)] == [HERE, None]


def test_what_nobody_knows_changes_nothing() -> None:
    affinity = SessionAffinity(10.0)
    affinity.end("s", 0.0)
    affinity.lose("s")
    affinity.unbind("s")
    assert len(affinity) == 0
    affinity.begin("s", HERE, 0.0)
    affinity.unbind("s")
    affinity.end("s", 1.0)
    assert len(affinity) == 0 and affinity.lookup("s", 1.0) is None


def test_a_restored_one_goes_on_as_the_old_one() -> None:
    affinity, restored = SessionAffinity(10.0), SessionAffinity(10.0)
    for number, session_id in enumerate("abcd"):
        affinity.begin(session_id, Candidate(number, number % 2), 0.0)
    affinity.begin("d", THERE, 0.0)
    for at_ms, session_id in ((1.0, "c"), (2.0, "a"), (3.0, "d")):
        affinity.end(session_id, at_ms)
    restored.restore(affinity.snapshot())
    assert restored.snapshot() == affinity.snapshot()
    assert restored.snapshot().idle == ["c", "a"]
    for one in (affinity, restored):
        one.end("d", 4.0)
    for now_ms in (0.0, 11.0, 12.0, 14.0):
        found = [restored.lookup(name, now_ms) for name in "abcd"]
        assert found == [affinity.lookup(name, now_ms) for name in "abcd"]
        assert len(affinity) == len(restored)
    assert len(restored) == 1
