"""When stations are due: each is expected once for a time, and again when that has come."""

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.station import HungStation
from dynosim.engine.pace import NEVER


def due(agenda: Agenda) -> list[tuple[float, int]]:
    return sorted(entry for entry in agenda.ends if entry[0] < NEVER)


def test_stations_have_numbers_in_the_order_in_which_they_came() -> None:
    agenda = Agenda()
    stations = [HungStation(), HungStation()]
    assert [agenda.add(station) for station in stations] == [0, 1]
    assert agenda.next_ms() == NEVER
    stations[1].next_ms = 7.0
    assert agenda.next_ms() == 7.0


def test_a_station_is_expected_once_for_a_time() -> None:
    agenda = Agenda()
    one, other = agenda.add(HungStation()), agenda.add(HungStation())
    for _ in range(2):
        agenda.expect(one, 5.0)
        agenda.expect(other, 6.0)
    assert due(agenda) == [(5.0, one), (6.0, other)]
    agenda.expect(one, 4.0)  # it is earlier now; what was noted before is void
    agenda.expect(other, 9.0)
    agenda.expect(one, NEVER)
    assert due(agenda) == [(4.0, one), (5.0, one), (6.0, other), (9.0, other)]


def test_what_has_come_may_be_expected_at_the_same_time_again() -> None:
    agenda = Agenda()
    station = agenda.add(HungStation())
    agenda.expect(station, 5.0)
    agenda.ends.remove((5.0, station))
    agenda.came(station)
    agenda.expect(station, 5.0)
    assert due(agenda) == [(5.0, station)]
