"""Pages as their readers use them: clicks, keys, themes and telephones in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from cluster import dynosim
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dynosim.plots.sweep_html import write_sweep_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: tests/live/install.sh installs Debian's"
)

SWEEP_FILE = """\
name: small
workload:
  synthetic: {requests: 400, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
space:
  cluster.workers: [1, 2]
  router.mode: [round-robin, least-loaded, random]
  engine.max_num_batched_tokens: [256, 2048]
constraints: {sla: {ttft_ms: 150, itl_ms: 30}}
load: {search: curve, min_requests: 0, curve: [0.3, 0.7]}
top: 2
"""
RUN_FILE = """\
name: one run
workload:
  synthetic: {requests: 200, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
cluster: {workers: 3}
"""
PLAN_FILE = """\
name: small plan
workload:
  synthetic: {isl: 300, osl: 20}
  stages: [{rate_rps: 4, duration_s: 60}, {rate_rps: 30, duration_s: 60}]
engine: {num_gpu_blocks: 200, max_model_len: 512, max_num_seqs: 8}
timing: {kind: fixed, prefill_ms: 30, decode_ms: 10}
cluster: {workers: 1, startup: {boot_s: 10}}
sla: {ttft_ms: 500}
"""
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MANY = 10_000
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep, a run and a comparison of controllers, with their pages."""
    folder = tmp_path_factory.mktemp("pages")
    files = {"sweep": SWEEP_FILE, "run": RUN_FILE, "plan": PLAN_FILE}
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
        done = dynosim(name, folder / f"{name}.yaml", "--out", folder / name)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A page that is open, and everything it said or asked for."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        context = browser.new_context(**{"viewport": WIDE, "color_scheme": "light", **options})
        self.page: Page = context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._said)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.path = path
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.goto(path.as_uri())
        self.page.locator(".figure").first.scroll_into_view_if_needed()
        self.page.wait_for_selector("svg.main-svg", state="attached")

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def close(self) -> None:
        assert self.errors == []
        asked = [url for url in self.requests if not url.startswith(("data:", "blob:"))]
        assert set(asked) == {self.path.as_uri()}
        self.page.context.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Any]:
    """Opens pages; at the end none of them may have failed, or asked anybody for anything."""
    readers: list[Reader] = []

    def opened(path: Path, **options: Any) -> Page:
        readers.append(Reader(browser, path, **options))
        return readers[-1].page

    yield opened
    for reader in readers:
        reader.close()


def column(page: Page, title: str, name: str = "trials") -> list[str]:
    """The texts of a column of a table, top to bottom."""
    table = page.locator(f'.table[data-name="{name}"] table')
    titles = table.locator("thead th").all_inner_texts()
    place = [text.strip() for text in titles].index(title) + 1
    texts: list[str] = table.locator(f"tbody td:nth-child({place})").all_inner_texts()
    return texts


def floats(texts: list[str]) -> list[float]:
    return [float(text.replace(",", "").split()[0]) for text in texts if text != "-"]


def natural(text: str) -> list[int | str]:
    """A key that puts 256 before 2048."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def sort_by(page: Page, title: str) -> None:
    page.locator('.table[data-name="trials"] th button', has_text=title).first.click()


def rings(page: Page) -> list[list[tuple[float, float]]]:
    """Of each figure the points that are ringed."""
    drawn: list[list[tuple[float, float]]] = page.evaluate(
        """() => [...document.querySelectorAll(".plot")].map((plot) =>
             (plot.data || []).filter((trace) => trace.name === "selected")
               .flatMap((trace) => trace.x.map((x, i) => [x, trace.y[i]])))"""
    )
    return drawn


def click_point(page: Page, figure: int, row: int) -> None:
    """Click the first point of a row in a figure, with the mouse where it is drawn."""
    page.locator(".figure").nth(figure).scroll_into_view_if_needed()
    at = page.evaluate(
        """([figure, row]) => {
             const plot = document.querySelectorAll(".plot")[figure];
             const box = plot.getBoundingClientRect();
             for (const trace of plot.data) {
               const i = (trace.customdata || []).findIndex((at) => at[0] === row);
               if (i < 0) continue;
               const { xaxis, yaxis } = plot._fullLayout;
               return [box.x + xaxis._offset + xaxis.d2p(trace.x[i]),
                       box.y + yaxis._offset + yaxis.d2p(trace.y[i])];
             }
           }""",
        [figure, row],
    )
    page.mouse.move(*at)
    page.mouse.move(at[0] + 1, at[1])
    page.wait_for_selector("g.hovertext", state="attached")
    page.mouse.click(at[0] + 1, at[1])


def winner_of(page: Page) -> int:
    places = column(page, "place")
    return int(column(page, "trial")[places.index("1*")])


def test_the_answer_comes_before_everything_else(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    answer = page.locator(".answer")
    assert answer.locator("h2").inner_text().startswith("Deploy ")
    terms = answer.locator("dt").all_inner_texts()
    wanted = ["SLA", "At capacity", "Why", "Ties", "Fastest", "Cheapest", "Headroom"]
    assert [term for term in wanted if term not in terms] == []
    commands = answer.locator("code").all_inner_texts()
    assert [command.split()[:2] for command in commands] == [
        ["dynosim", "deploy"], ["dynosim", "validate"], ["dynosim", "run"],
        ["agg/top1/engine.sh"], ["agg/top1/bench.sh"],
    ]  # fmt: skip
    done = dynosim(*commands[2].split()[1:], cwd=folder / "sweep")
    assert done.returncode == 0, done.stderr
    assert answer.bounding_box()["y"] < page.locator(".figure").first.bounding_box()["y"]


def test_headings_sort_their_columns_numbers_as_numbers(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    heading = page.locator('.table[data-name="trials"] th', has_text="req/s")
    sort_by(page, "req/s")
    assert heading.get_attribute("aria-sort") == "descending"
    numbers = floats(column(page, "req/s"))
    assert numbers == sorted(numbers, reverse=True) and len(set(numbers)) > 1
    heading.locator("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert floats(column(page, "req/s")) == sorted(numbers)
    sort_by(page, "layout")
    names = column(page, "layout")
    assert names == sorted(names, key=natural) and heading.get_attribute("aria-sort") is None


def test_the_box_filters_rows(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    box = page.locator('.table[data-name="trials"] input')
    box.fill("least-loaded 2048")
    assert set(column(page, "mode")) == {"least-loaded"}
    assert set(column(page, "max_num_batched_tokens")) == {"2048"}
    box.fill("no such row")
    assert column(page, "mode") == []
    box.fill("")
    assert len(column(page, "mode")) == 12


def test_a_point_chooses_its_row_and_shows_how_to_run_it(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    row = winner_of(page)
    click_point(page, 0, row)
    chosen = page.locator('tr[aria-selected="true"]')
    expect(chosen).to_have_count(1)
    assert chosen.get_attribute("data-row") == str(row)
    panel = page.locator("#selection")
    assert "agg/top1/config.yaml" in panel.locator("p").inner_text()
    command = panel.locator("code").inner_text()
    load = page.evaluate("selection.load")
    assert command.startswith("dynosim run agg/top1/config.yaml --set workload.arrival_scale=")
    assert float(command.rsplit("=", 1)[1]) == pytest.approx(load, rel=1e-5)
    assert rings(page)[0]
    page.keyboard.press("Escape")
    expect(panel).to_be_hidden()
    assert not any(rings(page)) and chosen.count() == 0


def test_a_row_rings_its_points_and_its_command_runs_it(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    trials = pl.read_parquet(folder / "sweep" / "trials.parquet")
    winners = {winner_of(page), *floats([p for p in column(page, "trial")][:2])}
    row = next(int(r) for r in column(page, "trial") if int(r) not in winners)
    line = page.locator(f'tr[data-row="{row}"]').first
    line.focus()
    page.keyboard.press("Enter")
    told = trials.filter(pl.col("trial_id") == row).to_dicts()[0]
    at = [told["median_output_token_throughput_per_user"], told["output_tok_s_per_gpu"]]
    assert rings(page)[0] == [pytest.approx(at, rel=1e-3)]
    command = page.locator("#selection code").inner_text()
    done = dynosim(*command.split()[1:], "--json", cwd=folder / "sweep")
    assert done.returncode == 0, done.stderr
    config = json.loads(done.stdout)["config"]
    assert config["cluster"]["workers"] == told["cluster.workers"]
    assert config["router"]["mode"] == told["router.mode"]
    assert config["engine"]["max_num_batched_tokens"] == told["engine.max_num_batched_tokens"]
    assert config["workload"]["arrival_scale"] == pytest.approx(told["capacity_load"], rel=0.01)


def test_switches_change_what_the_axes_show(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "sweep" / "report.html")
    figure = page.locator(".figure").first
    titles = "() => [0, 1].map((i) => document.querySelector('.plot').layout" \
        "[['xaxis', 'yaxis'][i]].title.text)"  # fmt: skip
    before = page.evaluate(titles)
    figure.locator("select").nth(1).select_option(label="TTFT p95 (ms)")
    figure.locator("select").nth(0).select_option(label="total tokens/s per GPU")
    assert page.evaluate(titles) == ["TTFT p95 (ms)", "total tokens/s per GPU"] != before


@pytest.mark.parametrize("name", ["sweep", "run", "plan"])
def test_dark_pages_have_dark_figures(name: str, folder: Path, open_page: Any) -> None:
    page = open_page(folder / name / "report.html", color_scheme="dark")
    colors = """() => [getComputedStyle(document.body).backgroundColor,
        document.querySelector(".plot")._fullLayout.paper_bgcolor,
        document.querySelector(".plot")._fullLayout.font.color]"""
    dark = page.evaluate(colors)
    page.locator("#theme").click()
    light = page.evaluate(colors)
    assert page.locator("#theme").inner_text() == "Dark"
    for before, after, is_paper in zip(dark, light, (True, True, False), strict=True):
        assert (brightness(before) < 60) == is_paper, (before, after)
        assert (brightness(after) > 200) == is_paper, (before, after)
    page.reload()
    page.wait_for_selector("svg.main-svg", state="attached")
    assert page.evaluate(colors) == light  # the choice is kept


def brightness(color: str) -> float:
    return float(np.mean([int(part) for part in color.strip("rgba()").split(",")[:3]]))


@pytest.mark.parametrize("name", ["sweep", "run", "plan"])
def test_a_telephone_scrolls_in_one_direction_only(name: str, folder: Path, open_page: Any) -> None:
    page = open_page(folder / name / "report.html", viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for table in page.locator(".scroll table").all():
        if table.is_visible():
            outside = table.evaluate("(e) => e.closest('.scroll').getBoundingClientRect().right")
            assert outside <= PHONE["width"]
    if name == "run":  # two by two on a desk, below each other here
        left = page.evaluate(
            "() => ['xaxis', 'xaxis2', 'xaxis3', 'xaxis4'].map("
            "(axis) => document.querySelector('.plot')._fullLayout[axis].domain[0])"
        )
        assert left == [0, 0, 0, 0]


def in_ms(text: str) -> float:
    amount, unit = text.split()
    return float(amount) * {"ms": 1, "s": 1000}[unit]


def test_the_page_of_a_run_draws_all_its_figures(folder: Path, open_page: Any) -> None:
    page = open_page(folder / "run" / "report.html")
    for figure in page.locator(".figure").all():
        figure.scroll_into_view_if_needed()
        figure.locator("svg.main-svg").first.wait_for(state="attached")
    assert page.locator(".figure").count() == 5
    slow = page.locator("section", has=page.locator("h2", has_text="Slowest requests"))
    slow.locator("th button", has_text="wait").click()
    waits = [in_ms(text) for text in slow.locator("tbody td:nth-child(4)").all_inner_texts()]
    assert waits == sorted(waits, reverse=True) and len(set(waits)) > 1
    read = page.evaluate("() => ['9 ms', '2 s', '1,234', '-', 'x'].map(readCell)")
    assert read == [[9, "9 ms"], [2000, "2 s"], [1234, "1,234"], None, "x"]
    page.locator("summary").click()
    rows = page.locator("details tbody tr")
    assert rows.count() == 100  # of more
    page.locator("details input").fill("mean_ttft_ms")
    assert rows.first.locator("td").first.inner_text() == "mean_ttft_ms"


def test_the_page_of_a_comparison_draws_lines_and_unfolds_reasons(
    folder: Path, open_page: Any
) -> None:
    page = open_page(folder / "plan" / "report.html")
    names = page.locator("section", has=page.locator("h2", has_text="Comparison"))
    shown = names.locator("tbody td:nth-child(1)").all_inner_texts()
    assert shown[0] == "planner" and shown[-1] == "perfect" and len(shown) == 7
    figure = page.locator(".figure")
    figure.scroll_into_view_if_needed()
    figure.locator("svg.main-svg").first.wait_for(state="attached")
    assert page.evaluate("document.querySelector('.plot').data.length") == 1 + 3 * 7
    reasons = page.locator("details", has_text="perfect:").first
    assert not reasons.locator("table").is_visible()
    reasons.locator("summary").click()
    assert "the schedule holds" in reasons.locator("tbody tr").first.inner_text()


def many_trials() -> pl.DataFrame:
    """Ten thousand trials, drawn at random; a frontier among them."""
    rng = np.random.default_rng(5)
    up, right = rng.gamma(5, 30, MANY), rng.gamma(5, 10, MANY)
    order = np.argsort(-right)
    is_best = np.zeros(MANY, dtype=bool)
    is_best[order] = up[order] >= np.maximum.accumulate(up[order])
    return pl.DataFrame(
        {
            "trial_id": np.arange(MANY),
            "status": ["ok"] * MANY,
            "reason": pl.Series([None] * MANY, dtype=pl.String),
            "is_pareto": is_best,
            "is_sla_pareto": is_best,
            "engine.tensor_parallel": rng.choice([1, 2, 4, 8], MANY),
            "cluster.workers": rng.integers(1, 9, MANY),
            "engine.max_num_batched_tokens": rng.integers(1, 99, MANY) * 256,
            "num_gpus": rng.integers(1, 64, MANY),
            "output_tok_s_per_gpu": up,
            "mean_output_token_throughput_per_user": right,
            "mean_ttft_ms": rng.gamma(2, 300, MANY),
            "saturated": [False] * MANY,
            "timing_source": ["measured"] * MANY,
            "timing_in_range_share": np.ones(MANY),
        }
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "report.html"
    objectives = ("output_tok_s_per_gpu", "mean_output_token_throughput_per_user")
    write_sweep_html(path, title="many", spec_yaml="", trials=many_trials(), objectives=objectives)
    return path


def test_ten_thousand_trials_sort_and_turn_pages(large: Path, open_page: Any) -> None:
    page = open_page(large)
    table = page.locator('.table[data-name="trials"]')
    assert table.locator("tbody tr").count() == 100
    assert table.locator(".count").inner_text() == "1 to 100 of 10,000"
    trials = many_trials()
    sort_by(page, "TTFT mean (ms)")
    expected = sorted(trials["mean_ttft_ms"], reverse=True)
    shown = floats(column(page, "TTFT mean (ms)"))
    assert shown == pytest.approx(expected[:100], rel=1e-3)
    table.get_by_text("Next").click()
    assert floats(column(page, "TTFT mean (ms)")) == pytest.approx(expected[100:200], rel=1e-3)
    table.locator("input").fill("8xTP8")
    assert set(column(page, "layout")[0:5]) and all("8xTP8" in n for n in column(page, "layout"))


def test_of_ten_thousand_points_the_frontier_and_some_others_are_drawn(
    large: Path, open_page: Any
) -> None:
    page = open_page(large)
    rows = page.evaluate(
        "() => document.querySelector('.plot').data.flatMap("
        "(trace) => (trace.customdata || []).map((at) => at[0]))"
    )
    trials = many_trials()
    front = set(trials.filter("is_pareto")["trial_id"])
    assert front <= set(rows) and 2000 <= len(set(rows)) <= 2000 + len(front)
    left_out = f"{MANY - len(set(rows)):,} trials off the frontier are left out."
    assert left_out in page.locator(".caption").first.inner_text()
    missing = next(row for row in range(MANY) if row not in set(rows))
    page.locator('.table[data-name="trials"] input').fill("")
    page.evaluate(f"selection.choose({missing}, null)")
    told = trials.filter(pl.col("trial_id") == missing).to_dicts()[0]
    at = [told["mean_output_token_throughput_per_user"], told["output_tok_s_per_gpu"]]
    assert rings(page)[0] == [pytest.approx(at, rel=1e-3)]
    expect(page.locator(f'tr[data-row="{missing}"][aria-selected="true"]')).to_be_visible()


def test_without_scripts_the_first_rows_are_there(large: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large.as_uri())
    rows = page.locator("noscript tbody tr")
    assert rows.count() == 20
    best = many_trials().filter("is_pareto").sort("output_tok_s_per_gpu", descending=True)
    assert rows.first.locator("td").first.inner_text() == str(best["trial_id"][0])
    context.close()
