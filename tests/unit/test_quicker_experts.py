"""Of experts that no version in use was measured with, the quicker measurements are taken."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from timing_support import silicon_table

from dynosim.silicon import engine_tables
from dynosim.silicon.table_versions import TableChoice
from dynosim.timing.silicon_table import SiliconTable

EXPERTS = ("moe", "moe_perf.parquet")


def taken(factor: float, monkeypatch: pytest.MonkeyPatch, *, wanted: str = "0.16.0") -> bool:
    """Whether 0.24.0 is taken in place of 0.19.0, whose times are 1 / `factor` of its own."""
    near = silicon_table()
    far = replace(near, linear_ms=factor * near.linear_ms, head_ms=factor * near.head_ms)
    choice = TableChoice(wanted, {EXPERTS: "0.19.0"})

    def table(_: dict[str, int], choice: TableChoice) -> SiliconTable:
        return far if choice.versions[EXPERTS] == "0.24.0" else near

    monkeypatch.setattr(engine_tables, "others_by_distance", lambda *_: ["0.24.0"])
    deployment = SimpleNamespace(
        shape=SimpleNamespace(experts=8), hardware="h200_sxm", backend="vllm", table=table
    )
    found = engine_tables.EngineTables.with_quicker_experts(deployment, near, {}, choice)  # type: ignore[arg-type]
    return found is far


def test_quicker_measurements_of_a_neighbour_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(0.5, monkeypatch)


@pytest.mark.parametrize("factor", [0.99, 1.5])
def test_equal_and_slower_ones_are_not(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken(factor, monkeypatch)


def test_the_version_in_use_is_never_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not taken(0.5, monkeypatch, wanted="0.19.0")
