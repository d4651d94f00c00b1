"""Links: what presets say, what may be stated instead, and that the page says the same."""

import re
from dataclasses import replace
from typing import Any

import pytest
from shared_data import ROOT

from dynosim.errors import ConfigError
from dynosim.memory.links import LINKS, LinkSpec, link_spec

PLAIN: dict[str, Any] = {"name": "x", "line_gb_s": 10.0, "achieved_gb_s": 5.0}


def test_presets_are_the_links_that_run_files_name() -> None:
    assert list(LINKS) == ["nvlink", "ib", "roce", "efa", "tcp", "pcie"]
    assert all(name == link.name for name, link in LINKS.items())


def test_rates_are_those_of_the_sources() -> None:
    rates = {name: (link.line_gb_s, link.achieved_gb_s) for name, link in LINKS.items()}
    assert rates == {
        "nvlink": (450.0, 376.0),
        "ib": (50.0, 46.0),
        "roce": (50.0, 43.0),
        "efa": (50.0, 9.6),
        "tcp": (12.5, 0.1),
        "pcie": (64.0, 52.0),
    }


@pytest.mark.parametrize("link", LINKS.values(), ids=lambda link: link.name)
def test_every_figure_of_a_preset_says_where_it_comes_from(link: LinkSpec) -> None:
    said = {source.partition(":")[0]: source.partition(": ")[2] for source in link.sources}
    assert len(said) == len(link.sources)
    expected = {"line", "achieved", "latency", "descriptor"}
    assert set(said) == expected | ({"handshake"} if link.handshake_ms else set())
    assert said["line"].startswith("data sheet")
    assert re.match("measured|fitted to measured", said["achieved"])
    assert said["descriptor"].startswith("none") == (link.per_descriptor_us == 0)


def test_a_worker_has_one_link_for_each_gpu_or_one_in_all() -> None:
    assert {name for name, link in LINKS.items() if link.per_gpu} == {
        "nvlink",
        "ib",
        "roce",
        "pcie",
    }
    assert LINKS["ib"].worker_gb_s(1) == 46.0 and LINKS["ib"].worker_gb_s(4) == 184.0
    assert LINKS["efa"].worker_gb_s(1) == LINKS["efa"].worker_gb_s(8) == 9.6


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("line_gb_s", "line_gb_s"),
        ("achieved_gb_s", "bandwidth_gb_s"),
        ("latency_us", "latency_us"),
        ("per_descriptor_us", "per_descriptor_us"),
        ("handshake_ms", "handshake_ms"),
    ],
)
def test_an_impossible_figure_is_refused_by_the_name_of_its_key(
    name: str, key: str, value: float
) -> None:
    with pytest.raises(ConfigError, match=rf"^cluster\.transfer\.{key}: .*\(state one") as caught:
        LinkSpec(**PLAIN | {name: value})
    assert "nvlink, ib, roce, efa, tcp, pcie" in str(caught.value)


def test_zero_is_no_rate_but_a_cost() -> None:
    for name in ("line_gb_s", "achieved_gb_s"):
        with pytest.raises(ConfigError, match="above 0"):
            LinkSpec(**PLAIN | {name: 0.0})
    costs = {"latency_us": 0.0, "per_descriptor_us": 0.0, "handshake_ms": 0.0}
    assert LinkSpec(**PLAIN, **costs) == LinkSpec(**PLAIN)


def test_no_link_achieves_more_than_its_line() -> None:
    assert LinkSpec(**PLAIN | {"achieved_gb_s": 10.0}).achieved_gb_s == 10.0
    assert LinkSpec(**PLAIN | {"line_gb_s": None}).line_gb_s is None
    with pytest.raises(ConfigError, match=r"^cluster\.transfer\.line_gb_s: 10 is less than the 11"):
        LinkSpec(**PLAIN | {"achieved_gb_s": 11.0})


# ---- stated instead of a preset's ----------------------------------------------------------------


def test_a_preset_alone_is_the_preset() -> None:
    for name, link in LINKS.items():
        assert link_spec(name) == link


def test_what_is_stated_takes_the_place_of_the_presets_figure_and_says_so() -> None:
    ib = LINKS["ib"]
    stated = link_spec("ib", latency_us=0.0, per_gpu=False)
    assert stated == replace(ib, latency_us=0.0, per_gpu=False, sources=stated.sources)
    assert "latency: stated" in stated.sources and "per GPU: stated" in stated.sources
    assert [source for source in ib.sources if source not in stated.sources] == [
        "latency: Dynamo's documentation"
    ]


def test_a_rate_beyond_the_presets_line_leaves_no_line() -> None:
    assert link_spec("ib", bandwidth_gb_s=50.0).line_gb_s == 50.0
    assert link_spec("ib", bandwidth_gb_s=90.0).line_gb_s is None
    assert link_spec("ib", bandwidth_gb_s=90.0, line_gb_s=100.0).line_gb_s == 100.0


def test_a_rate_is_enough_for_a_link() -> None:
    stated = link_spec(bandwidth_gb_s=3.0, handshake_ms=7.0)
    assert (stated.name, stated.line_gb_s, stated.achieved_gb_s) == ("stated", None, 3.0)
    assert (stated.latency_us, stated.per_descriptor_us, stated.handshake_ms) == (0.0, 0.0, 7.0)
    assert not stated.per_gpu and "achieved: stated" in stated.sources


def test_neither_preset_nor_rate_and_an_unknown_preset_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.transfer: .*\(state preset"):
        link_spec(latency_us=1.0)
    with pytest.raises(ConfigError, match=r"^cluster\.transfer\.preset: 'infiniband' .*nvlink, ib"):
        link_spec("infiniband", bandwidth_gb_s=1.0)
    with pytest.raises(ConfigError, match=r"^cluster\.transfer\.bandwidth_gb_s: 0 "):
        link_spec("ib", bandwidth_gb_s=0.0)


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_lists_presets_as_they_are() -> None:
    page = (ROOT / "docs" / "links.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE))
    assert list(rows) == list(LINKS)
    for name, link in LINKS.items():
        assert rows[name].split(" | ")[:6] == [
            f"{link.line_gb_s:g}",
            f"{link.achieved_gb_s:g}",
            "GPU" if link.per_gpu else "worker",
            f"{link.latency_us:g}",
            f"{link.per_descriptor_us:g}",
            f"{link.handshake_ms:g}",
        ], name


def test_the_page_states_every_source() -> None:
    page = " ".join((ROOT / "docs" / "links.md").read_text().split())
    for link in LINKS.values():
        assert f"* `{link.name}`: {'; '.join(link.sources)}." in page, link.name
