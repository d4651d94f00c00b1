"""Every key of a file says what it means, and numbers say in which unit."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.config.base import Section
from dynosim.config.descriptions import Description, descriptions
from dynosim.config.sweep_schema import SweepSla
from dynosim.reference.entries import Entry, entries, is_number
from dynosim.reference.schemas import run_schema, sweep_schema, synthetic_schema

WITHOUT_UNIT = {"port", "seed", "lose_frontend"}
"""Numbers that count or measure nothing."""


@pytest.fixture(scope="module", params=[run_schema, sweep_schema, synthetic_schema])
def keys(request: pytest.FixtureRequest) -> list[Entry]:
    return list(entries(request.param()))


def test_every_key_says_what_it_means(keys: list[Entry]) -> None:
    assert [entry.path for entry in keys if len(entry.meaning) < 10] == []
    texts = [entry.meaning for entry in keys]
    assert [text for text in texts if not text.endswith(".") or not text[0].isupper()] == []


def test_every_number_says_in_which_unit(keys: list[Entry]) -> None:
    bare = {entry.name for entry in keys if is_number(entry.key) and not entry.unit}
    assert bare <= WITHOUT_UNIT


def test_what_is_no_number_has_no_unit(keys: list[Entry]) -> None:
    odd = {entry.path for entry in keys if entry.unit and not _holds_numbers(entry.key)}
    assert odd == set()


def _holds_numbers(key: dict[str, Any]) -> bool:
    parts = (key, *key.get("anyOf", ()))
    inner = [part[of] for part in parts for of in ("items", "additionalProperties") if of in part]
    return is_number(key) or any(map(is_number, inner))


def test_a_section_has_the_descriptions_that_it_inherits() -> None:
    found = descriptions(SweepSla)
    assert set(found) == set(SweepSla.model_fields)
    assert found["ttft_ms"].unit == "ms" and found["attainment"].unit == "share"
    assert found["statistic"].unit is None


def test_a_description_is_the_text_below_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told_sections.py").write_text(
        "from dynosim.config.base import Section\n"
        "class Told(Section):\n"
        "    wait_ms: float = 1.0\n"
        '    """How long it\n    waits."""\n'
        "    share: float = 0.5  # of all\n"
        "    count_tokens: bool = True\n"
        '    """Whether tokens count."""\n'
        "    size: int = 1\n"
        '    """How large. Unit: blocks."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    told: type[Section] = __import__("told_sections").Told
    assert descriptions(told) == {
        "wait_ms": Description("How long it waits.", "ms"),
        "count_tokens": Description("Whether tokens count.", None),
        "size": Description("How large.", "blocks"),
    }
