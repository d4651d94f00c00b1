"""What the page and the pictures of a sweep tell beyond its table, as plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynosim.config.sweep_loading import SweepConfig
from dynosim.plots import trials as trial_table
from dynosim.plots.load_curves import LoadCurves, curves_of
from dynosim.plots.page import Headline, RunFiles, number
from dynosim.plots.sweep_html import SweepStory
from dynosim.plots.tornado import TornadoBar
from dynosim.sweep.answer import Answer
from dynosim.sweep.answer_text import (
    answer_headline,
    layout_name,
    load_key,
    load_unit,
    script_of,
    sla_text,
)
from dynosim.sweep.effects import PairedEffect, paired_effects
from dynosim.sweep.results import CAPACITY, Row
from dynosim.sweep.screen_report import screen_text

if TYPE_CHECKING:
    import polars as pl


def story_of(
    sweep: SweepConfig,
    rows: Sequence[Row],
    best: Sequence[Row],
    run_files: Sequence[str],
    *,
    table: "pl.DataFrame",
    answer: Answer | None = None,
    probes: "pl.DataFrame | None" = None,
) -> SweepStory:
    """The story of a sweep. `run_files` are those of the `best` rows, in the sweep's folder;
    `answer` and `probes` are there where loads were searched."""
    run = _run_files(sweep, table, best, run_files, has_load=answer is not None)
    if answer is None or probes is None:
        return SweepStory(_plain_headline(sweep, best, run_files), run=run)
    keys = trial_table.varied_keys(table)
    base = best[0].trial.values if best else rows[0].trial.values if rows else {}
    # Where a load is needed, only capacities of layouts that hold it are sought.
    keys = keys if sweep.load.need is None else []
    effects = paired_effects(rows, keys, base)
    paired = {effect.key for effect in effects}
    first = run_files[0] if run_files else ""
    return SweepStory(
        answer_headline(sweep, answer, probes=probes.to_dicts(), run_file=first),
        [row.trial.index for row in answer.ranked],
        answer.num_tied,
        run,
        load_curves(sweep, table, probes, answer),
        [_bar(effect, trial_table.short_names(keys)) for effect in effects],
        [key for key in keys if key not in paired],
    )


def with_space(story: SweepStory, summary: Mapping[str, Any]) -> SweepStory:
    """The story, and what became of points that were no trials or were not tried."""
    facts: list[tuple[str, str]] = []
    if "screen" in summary:
        facts.append(("Screen", screen_text(summary["screen"])))
    if summary.get("num_same_points"):
        same = f"{summary['num_same_points']:,} combinations of values come to the same layouts"
        facts.append(("Space", f"{same}: each is tried once"))
    if story.headline is None or not facts:
        return story
    headline = replace(story.headline, facts=[*story.headline.facts, *facts])
    return replace(story, headline=headline)


def load_curves(
    sweep: SweepConfig, table: "pl.DataFrame", probes: "pl.DataFrame", answer: Answer
) -> LoadCurves:
    """The curves, with what pictures of them must say."""
    sla = sweep.constraints.sla
    has_target = sla is not None and sla.statistic is None
    return LoadCurves(
        curves_of(table, probes, [row.trial.index for row in answer.ranked]),
        trial_table.common_source(table),
        trial_table.timing_note(table),
        None if answer.best is None else answer.best.trial.index,
        sla.share if sla is not None and has_target else None,
        "in flight" if sweep.load.vary == "concurrency" else "x",
    )


def _run_files(
    sweep: SweepConfig,
    table: "pl.DataFrame",
    best: Sequence[Row],
    run_files: Sequence[str],
    *,
    has_load: bool,
) -> RunFiles | None:
    if not best:
        return None
    files = {row.trial.index: file for row, file in zip(best, run_files, strict=True)}
    keys = trial_table.varied_keys(table)
    if not has_load:
        return RunFiles(files, keys)
    return RunFiles(files, keys, load_key(sweep), CAPACITY, load_unit(sweep, best[0]))


def _plain_headline(
    sweep: SweepConfig, best: Sequence[Row], run_files: Sequence[str]
) -> Headline | None:
    """The answer of a sweep at one load."""
    if not best:
        return None
    row, file = best[0], run_files[0]
    report = row.report
    facts = [
        ("SLA", sla_text(sweep) if sweep.constraints.sla is not None else "none"),
        (
            "Why",
            "on the frontier of what meets the SLA, most output tokens/s per GPU: "
            f"{number(report.get('output_tok_s_per_gpu'))}",
        ),
        (
            "Mind",
            "one load: throughput per GPU is load / GPUs of all that is not overloaded "
            "(load: {search: capacity} asks what each layout carries)",
        ),
    ]
    folder = file.rsplit("/", 1)[0]
    commands = [
        ("deploy", f"dynosim deploy {folder} --mock"),
        ("prove", f"dynosim validate {folder} --url http://HOST:PORT"),
        ("run", f"dynosim run {file}"),
        ("engine", f"{folder}/{script_of(row)}"),
        ("bench", f"{folder}/bench.sh"),
    ]
    return Headline(f"Deploy {layout_name(sweep, row)}", facts, commands)


def _bar(effect: PairedEffect, names: dict[str, str]) -> TornadoBar:
    name = f"{names[effect.key]}: {effect.from_value} to {effect.to_value}"
    told = [
        name,
        f"capacity {_percent(effect.ratio)} ({_percent(effect.low)} to {_percent(effect.high)})",
        f"{effect.num_pairs} pairs, from {_percent(effect.smallest)} to {_percent(effect.largest)}",
    ]
    if effect.num_without:
        told.append(
            f"in {effect.num_without} more only one of the two carries anything "
            f"({effect.num_only_to} with the new value)"
        )
    if effect.is_tie:
        told.append("a tie")
    change = [ratio - 1.0 for ratio in (effect.ratio, effect.low, effect.high)]
    return TornadoBar(name, change[0], change[1], change[2], effect.is_tie, "\n".join(told))


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"
