"""Packed reports: what was put in, in a fraction of the room."""

import json
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dynosim.sweep.packed import PackedReport, packed_answer

VALUES = st.one_of(
    st.floats(allow_nan=False), st.integers(), st.booleans(), st.none(), st.text(max_size=5),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=30))
def test_every_value_comes_back_with_its_type_and_place(report: dict[str, Any]) -> None:
    packed = PackedReport(report)
    assert json.dumps(dict(packed)) == json.dumps(report)
    assert len(packed) == len(report) and "no such key" not in packed
    assert packed.get("no such key") is None and packed == report


def test_it_takes_a_fifth_of_the_room() -> None:
    report = {f"key_{n}": n / 7 if n % 4 else None for n in range(150)}
    text = json.dumps(report)

    def room(make: Any) -> int:
        made = [make(json.loads(text))]
        tracemalloc.start()
        made += [make(json.loads(text)) for _ in range(200)]
        size, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return size // (len(made) - 1)

    assert room(PackedReport) < room(dict) / 4


def test_an_answer_keeps_the_draws_of_its_verdict() -> None:
    answer = {"status": "ok", "report": {"a": 0.5}, "verdict": {"draws": [0.1, 0.2], "b": 1}}
    packed = packed_answer(answer)
    assert list(packed["verdict"]["draws"]) == [0.1, 0.2] and packed["verdict"]["b"] == 1
    assert packed["report"]["a"] == 0.5 and packed_answer({**answer, "verdict": None})
