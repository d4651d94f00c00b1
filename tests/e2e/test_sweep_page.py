"""What the page of a sweep says, of every way to search loads. Browsers are in tests/live."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from dynosim.cli import main

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 400, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2]
  router.mode: [round-robin, least-loaded]
constraints: {gpu_budget: 4, sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: capacity, vary: rate, min_requests: 0}
top: 1
"""

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")


class PageText:
    """What a page says to its readers and to its scripts."""

    def __init__(self, path: Path) -> None:
        text = path.read_text()
        head = text[: text.index("<section>")]
        self.headline = unescape("".join(re.findall(r"<h2>(.*?)</h2>", head)))
        pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", head)
        self.facts = {unescape(term): unescape(words) for term, words in pairs}
        self.commands = [unescape(c) for c in re.findall(r"<code>(.*?)</code>", head)]
        self.titles = [unescape(t) for t in re.findall(r"<section><h2>(.*?)</h2>", text)]
        blocks = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.S)
        documents = [json.loads(block) for block in blocks]
        self.page = documents[-1]
        self.tables = [d for d in documents if isinstance(d, dict) and "rows" in d]


def page_of(tmp_path: Path, *overrides: str, code: int = 0) -> PageText:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(SWEEP_FILE)
    sets = [word for override in overrides for word in ("--set", override)]
    assert main(["sweep", str(file), "--out", str(out), *sets]) == code
    return PageText(out / "report.html")


def best_of(tmp_path: Path) -> dict[str, Any]:
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    trials = pl.read_parquet(tmp_path / "out" / "trials.parquet")
    return trials.filter(pl.col("trial_id") == summary["answer"]["best"]).to_dicts()[0]


def test_a_search_for_capacities_says_what_to_deploy_and_why(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    best = best_of(tmp_path)
    assert page.headline.startswith("Deploy ") and f"on {best['num_gpus']} GPU" in page.headline
    assert page.facts["SLA"] == "95 % of requests with TTFT <= 150 ms, time per token <= 30 ms"
    assert "GPU hours per million good output tokens" in page.facts["Why"]
    assert page.facts["Headroom"].startswith("the workload's own 20.2 requests/s: carried")
    assert "run it at 0.8 of that" in page.facts["Headroom"]
    assert page.commands == [
        "dynosim deploy agg/top1 --mock",
        "dynosim validate agg/top1 --url http://HOST:PORT",
        "dynosim run agg/top1/config.yaml",
        "agg/top1/engine.sh",
        "agg/top1/bench.sh",
    ]
    assert all((tmp_path / "out" / name).exists() for name in page.commands[3:])
    assert page.titles[:4] == [
        "What layouts carry", "Within the SLA, by load", "What each setting does", "Layouts",
    ]  # fmt: skip
    places = [row[1] for row in page.tables[0]["rows"]]
    assert places[0] == "1*" and places[-1] == ""
    assert page.page["run"]["files"][str(best["trial_id"])] == "agg/top1/config.yaml"


def test_a_rate_is_a_multiple_of_what_the_run_file_has(tmp_path: Path) -> None:
    page = page_of(tmp_path, "workload.arrival_scale=2")
    assert page.page["run"]["load_unit"] == 2
    config = yaml.safe_load((tmp_path / "out" / "agg" / "top1" / "config.yaml").read_text())
    scale = config["workload"]["arrival_scale"]
    assert scale == pytest.approx(2 * best_of(tmp_path)["capacity_load"])


def test_a_price_is_told_beside_the_hours(tmp_path: Path) -> None:
    priced = ("hardware=h200_sxm", "cost={gpu_hour: {h200_sxm: 2.5}, currency: EUR}")
    page = page_of(tmp_path, *priced)
    best = best_of(tmp_path)
    hours, cost = (best[f"{k}_per_m_good_output_tokens"] for k in ("gpu_hours", "cost"))
    assert f"{hours:.3g} GPU hours, {cost:.3g} EUR, per million" in page.facts["Why"]


def test_a_load_that_is_needed_is_in_the_headline(tmp_path: Path) -> None:
    need = "load={search: capacity, vary: rate, min_requests: 0, need: {rps: 30}}"
    page = page_of(tmp_path, need, "space={router.mode: [round-robin, least-loaded]}")
    assert "the fewest that hold 30 requests/s" in page.headline
    assert "times what is needed" in page.facts["Headroom"]
    assert "What each setting does" not in page.titles


def test_requests_in_flight_can_be_the_load(tmp_path: Path) -> None:
    load = "load={search: capacity, vary: concurrency, range: [1, 64]}"
    page = page_of(tmp_path, load)
    best = best_of(tmp_path)
    assert page.page["run"]["load_key"] == "workload.concurrency"
    assert page.page["run"]["load_unit"] == 1
    assert f"at {best['capacity_load']:.0f} requests in flight" in page.facts["At capacity"]


def test_where_nothing_is_carried_the_page_says_why(tmp_path: Path) -> None:
    page = page_of(tmp_path, "constraints.sla.ttft_ms=20", code=2)
    assert page.headline.startswith("None of 3 layouts carries any load from 0.02")
    assert page.facts["Carry nothing"].startswith("3 layouts; the best of them ")
    assert page.commands == [] and page.page["run"] is None
    remarks = [row[-1] for row in page.tables[0]["rows"]] if page.tables else []
    assert all("within" in text or "carries nothing" in text or text == "" for text in remarks)


def test_one_load_is_called_that(tmp_path: Path) -> None:
    page = page_of(tmp_path, "load={search: fixed}")
    assert page.headline.startswith("Deploy ")
    assert "throughput per GPU is load / GPUs" in page.facts["Mind"]
    assert page.titles[0] == "Pareto frontier" and "Trials" in page.titles
    assert page.page["run"]["load_key"] is None
