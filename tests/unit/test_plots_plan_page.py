"""Numbers on the page of a comparison are the document's, each beside its contestant."""

import re
from typing import Any

from dynosim.plots.page import Figure, render_page
from dynosim.plots.plan_html import COLUMNS, comparison, decisions, headline, plan_page

CHANGES = [
    {
        "at_s": 615.0,
        "pool": "workers",
        "before": 2,
        "after": 5,
        "verdict": "scale_up",
        "reasons": ["p95 of 3 s is above <2> s", "5 wanted"],
    }
]


def row(name: str, place: int, **others: Any) -> dict[str, Any]:
    figures = {key: place * 10.0 + column + 0.5 for column, key in enumerate(COLUMNS)}
    figures |= {"sla_attainment": 0.9 + place / 100}
    return {"name": name, "goes_by": f"rule of {name}", "why_not": None, "changes": [], **figures,
            **others}  # fmt: skip


def document(**others: Any) -> dict[str, Any]:
    rows = [
        row("planner", 6, changes=CHANGES),
        row("hpa", 3),
        dict.fromkeys(COLUMNS) | {"name": "keda", "goes_by": "-", "why_not": "scales one pool",
                                  "changes": []},
        row("perfect", 7, gpu_hours_by_perfect=1.0),
    ]  # fmt: skip
    return {
        "name": "mine",
        "trace_source": "synthetic",
        "seeds": [4],
        "sla": {"ttft_ms": 2000.0},
        "attainment_target": 0.95,
        "notes": ["something to know"],
        "contestants": rows,
        "timing_source": "measured",
        "timing_description": "d",
        **others,
    }


def timeline() -> list[dict[str, Any]]:
    return [
        {
            "contestant": name,
            "seed": seed,
            "start_s": 30.0 * place,
            "offered_rps": 3.0 + place,
            "sla_attainment": None if place == 1 else 0.5 * seed,
            "ready": float(index + place),
            "gpu_hours_so_far": index + place / 10,
        }
        for index, name in enumerate(("planner", "hpa", "perfect"))
        for seed in (4, 5)
        for place in range(3)
    ]


def rows_of(body: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", one, re.DOTALL) for one in rows]


def test_the_table_has_each_ones_figures_or_why_there_are_none() -> None:
    header, planner, hpa, keda, perfect = rows_of(comparison(document()))
    assert header == ["", *COLUMNS.values()]
    assert planner[:5] == ["planner", "60.5", "61.5", "96.0 %", "63.5"]
    assert hpa[0] == "hpa" and hpa[3] == "93.0 %" and perfect[2] == "1"
    assert keda[:2] == ["keda", "scales one pool"] and not any(keda[2:])


def test_the_headline_names_the_cheapest_that_keeps_the_sla() -> None:
    assert headline(document()).startswith("planner keeps the SLA with the fewest GPU hours, 60.5")
    assert "times the bound" in headline(document())
    strict = headline(document(attainment_target=0.99))
    assert strict == "None of them keeps the SLA for 99.0 % of the requests."


def test_decisions_stand_with_their_reasons_as_text() -> None:
    body = decisions(document())
    assert "planner: 1 changes" in body and "hpa" not in body
    _, change = rows_of(body)
    assert change[:2] == ["workers", "615"] and change[3:] == ["2", "5"]
    assert change[2] == "scale_up: p95 of 3 s is above &lt;2&gt; s; 5 wanted"


def test_lines_over_time_are_those_of_the_first_seed() -> None:
    page = plan_page(document(seeds=[4, 5]), timeline(), "seed: 4\n")
    (figure,) = [part.figure for part in page.parts if part.figure is not None]
    assert isinstance(figure, Figure)
    lines = [trace for trace in figure.data if trace.get("name") == "hpa"]
    assert [trace["y"] for trace in lines] == [
        [1.0, 2.0, 3.0],
        [2.0, None, 2.0],
        [1.0, 1.1, 1.2],
    ]
    assert [trace["showlegend"] for trace in lines] == [True, False, False]
    (load,) = [
        trace for trace in figure.data if not trace.get("name") and trace["type"] == "scatter"
    ]
    assert load["y"] == [3.0, 4.0, 5.0]
    assert "mean of 2 seeds" in page.lead


def test_the_page_is_whole_without_a_network() -> None:
    text = render_page(plan_page(document(), timeline(), "seed: 4\n"))
    assert "<summary>planner: 1 changes</summary>" in text  # a block, not its text
    assert "something to know" in text and "rule of hpa" in text and "seed: 4" in text
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert "http://" not in outside and "https://" not in outside
