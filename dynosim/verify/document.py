"""A verification as a page: what was held against what, the matrix, what misses and why."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from dynosim import __version__
from dynosim.silicon.catalogue import core_version
from dynosim.verify.matrix import (
    HEAD,
    KINDS,
    LEVEL_NAMES,
    by_cause,
    is_counted,
    missed,
    percent,
    row,
    summaries,
    summary_row,
    uncovered,
)
from dynosim.verify.verdict import (
    CURVE,
    E2E,
    EXPERIMENT,
    ITL,
    LOG,
    THROUGHPUT,
    TPOT,
    TTFT,
    RecordingVerdict,
)
from dynosim.verify.verification import Verification

_TITLES = {LOG: "Request logs", EXPERIMENT: "Experiments", CURVE: "Throughput curves"}
_STATISTICS = ("mean", "median", "p90", "p95", "p99")
_WIDTH = 100
_MEDIAN = "median &#124;error&#124;"
_METRICS = {E2E: "E2E", TTFT: "TTFT", TPOT: "TPOT", ITL: "ITL"}

_LEVELS = """\
* **A priori** knows the model, the GPU, the engine's version and its arguments, and the workload:
  arrivals, lengths, prefixes. It is what `dynosim run` says of such a run file, with a run file's
  own defaults.
* **Capacity given** knows the KV blocks that the engine printed, too, where they were recorded.
* **Fitted on 30 %** has constants fitted to the first 30 % of the requests of the same log; it is
  scored on the requests whose times the fit has not seen ([how a fit works](fits.md))."""

_READING = """\
Errors are (predicted - measured) / measured, of means unless a column says otherwise. *KS TTFT* is
the largest gap between the distributions of measured and predicted TTFT; *curve* the mean absolute
deviation of output tokens, second by second, over their mean; *blocks* the error of the KV
capacity. *Inside* counts the measured figures that lie in the prediction's 95 % interval. *Largest
cause* is the part whose measurement takes away most of the blind prediction's mean error over all
figures, with what it was and what is left; parts can make up for each other, so none may be named.
Logs on the engine's clock have no way in and out; means of experiments and curves are the client's.
Medians leave out what is shown apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """When and how the page came about; `before` are verdicts of an earlier program."""

    date: str
    command: str
    replays: int
    before: Sequence[RecordingVerdict] | None = None
    remarks: str | None = None


def document(verification: Verification, occasion: Occasion) -> str:
    """The page, in Markdown."""
    judged = [one for one in verification.verdicts if not one.problem]
    parts = [
        "# Accuracy against real engines",
        _origin(occasion),
        "## What is compared\n\n" + _LEVELS + "\n\n" + _READING,
        _intervals(judged, occasion),
        "## In short\n\n" + _summary(judged),
        *_kinds(judged),
        _missing(judged),
        _outside(judged),
        _causes(judged),
        _before(judged, occasion.before),
        "" if occasion.remarks is None else occasion.remarks.strip(),
        _left_out(verification),
        _notes(judged),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(occasion: Occasion) -> str:
    return (
        f"Written on {occasion.date} by dynosim {__version__} with aiconfigurator-core"
        f" {core_version()}, not by hand:\n\n"
        f"    {occasion.command} --to docs/accuracy.md --overwrite\n\n"
        "Fits, live engines and made-up deployments are on [a page of their own](fits.md)."
    )


def _intervals(judged: Sequence[RecordingVerdict], occasion: Occasion) -> str:
    if not occasion.replays:
        return ""
    sources: dict[str, list[str]] = {}
    for one in judged:
        mine = sources.setdefault(LEVEL_NAMES[one.level], [])
        mine += [word for word in one.varied if word not in mine]
    varied = "; ".join(f"{level}: {', '.join(words)}" for level, words in sources.items() if words)
    return fill(
        f"Intervals are the range of 95 % of the replays of a prediction ({occasion.replays} blind"
        f" ones) with other plausible values of what is not known ({varied}). What the twin leaves"
        " out is in none of them, and how often they cover says how honest they are.",
        _WIDTH,
    )


def _summary(judged: Sequence[RecordingVerdict]) -> str:
    rows = [summary_row(one) for one in summaries(judged)]
    return _table([_MEDIAN, *HEAD[1:]], rows)


def _kinds(judged: Sequence[RecordingVerdict]) -> Iterable[str]:
    for kind in KINDS:
        mine = [one for one in judged if one.kind == kind]
        if mine:
            yield f"## {_TITLES[kind]}\n\n" + "\n\n".join(_kind(mine))


def _kind(mine: Sequence[RecordingVerdict]) -> Iterable[str]:
    what = {one.recording: one for one in reversed(mine)}
    yield _table(
        ["recording", "model", "GPU", "engine", "layout"],
        [
            [name, *(one.setup.get(key, "") for key in ("model", "hardware", "version", "layout"))]
            for name, one in reversed(what.items())
        ],
    )
    counted = [one for one in mine if is_counted(one)]
    apart = [one for one in mine if one.excluded]
    if counted:
        yield _table(HEAD, [row(one) for one in counted])
        yield "Error of every figure, not of means alone:"
        yield _figures(counted)
    if apart:
        reasons = dict.fromkeys(f"{one.recording} ({one.excluded})" for one in apart)
        yield f"Shown apart and not counted: {'; '.join(reasons)}."
        yield _table(HEAD, [row(one) for one in apart])


def _figures(verdicts: Sequence[RecordingVerdict]) -> str:
    names = [
        f"{statistic}_{metric}" for metric in _METRICS for statistic in _STATISTICS
        if any(one.figure(f"{statistic}_{metric}") for one in verdicts)
    ]  # fmt: skip
    names += [THROUGHPUT] if any(one.figure(THROUGHPUT) for one in verdicts) else []
    return _table(
        ["recording", "level", *map(_short, names)],
        [
            [one.recording, LEVEL_NAMES[one.level], *(percent(one.error(name)) for name in names)]
            for one in verdicts
        ],
    )


def _short(name: str) -> str:
    if name == THROUGHPUT:
        return "tok/s"
    statistic, _, metric = name.partition("_")
    return f"{_METRICS[metric]} {statistic}"


def _missing(judged: Sequence[RecordingVerdict]) -> str:
    found = missed(judged)
    if not found:
        return (
            "## What still misses\n\nNo blind mean of E2E is off by more than 5 %, and none of TTFT"
            " by more than 10 %."
        )
    lines = [
        f"* **{one.recording}** ({one.setup.get('model', '')}): E2E"
        f" {percent(one.error(f'mean_{E2E}')) or 'not recorded'}, TTFT"
        f" {percent(one.error(f'mean_{TTFT}')) or 'not recorded'}{_because(one)}"
        for one in found
    ]
    return (
        "## What still misses\n\nBlind means of E2E that are off by more than 5 %, or of TTFT by"
        " more than 10 %, with the cause where a measured part tells it:\n\n" + "\n".join(lines)
    )


def _because(verdict: RecordingVerdict) -> str:
    part = verdict.largest_cause
    if part:
        return f"; largest cause: {part}"
    return "; no single part explains it" if verdict.causes else "; its parts were not recorded"


def _outside(judged: Sequence[RecordingVerdict]) -> str:
    found = uncovered(judged)
    if not found:
        return ""
    lines = [
        f"* {one.recording}, {LEVEL_NAMES[one.level]}: "
        + ", ".join(f"{_short(name)} ({_place(one, name)})" for name in names)
        for one, names in found
    ]
    return (
        "## Where the interval did not cover\n\nMeasured figures outside the interval, with the"
        " measured value and the interval's ends:\n\n" + "\n".join(lines)
    )


def _place(verdict: RecordingVerdict, name: str) -> str:
    figure = verdict.figure(name)
    assert figure is not None
    return f"{figure.measured:.4g}, not in {figure.low:.4g} to {figure.high:.4g}"


def _causes(judged: Sequence[RecordingVerdict]) -> str:
    found: Mapping[str, Sequence[tuple[str, float, float]]] = by_cause(judged)
    if not found:
        return ""
    rows = [
        [part, name, percent(before, signed=False), percent(after, signed=False)]
        for part, recordings in found.items()
        for name, before, after in recordings
    ]
    return (
        "## By cause\n\nMean |error| of all figures of the blind prediction, and with the one part"
        " that was measured:\n\n"
        + _table(["largest cause", "recording", "blind", "with it measured"], rows)
    )


def _before(judged: Sequence[RecordingVerdict], before: Sequence[RecordingVerdict] | None) -> str:
    if before is None:
        return ""
    was = {(one.recording, one.level): row(one) for one in before if is_counted(one)}
    now = {(one.recording, one.level): row(one) for one in judged if is_counted(one)}
    was_short = {(one.kind, one.level): summary_row(one) for one in summaries(before)}
    now_short = {(one.kind, one.level): summary_row(one) for one in summaries(judged)}
    return (
        "## Before and after\n\nErrors by an earlier state of dynosim, and now:\n\n"
        + _changes("recording", was, now)
        + "\n\n"
        + _changes(_MEDIAN, was_short, now_short)
    )


_Rows = Mapping[tuple[str, str], Sequence[str]]


def _changes(title: str, was: _Rows, now: _Rows) -> str:
    """What both have, side by side."""
    names = ("E2E", "TTFT", "TPOT", "tok/s", "curve", "blocks")
    places = [HEAD.index(name) for name in names]
    rows = [
        [*cells[:2], *(_change(was[key][place], cells[place]) for place in places)]
        for key, cells in now.items()
        if key in was
    ]
    return _table([title, "level", *names], rows)


def _change(before: str, now: str) -> str:
    return f"{before or '-'} → {now or '-'}" if before or now else ""


def _left_out(verification: Verification) -> str:
    lines = [
        f"* {one.recording}, {LEVEL_NAMES[one.level]}: {one.problem}"
        for one in verification.verdicts
        if one.problem
    ]
    lines += [f"* {why}" for _, why in verification.plan.unreadable]
    return "## Not predicted or not readable\n\n" + "\n".join(lines) if lines else ""


def _notes(judged: Sequence[RecordingVerdict]) -> str:
    about: dict[str, list[str]] = {}
    for one in judged:
        for note in (*one.notes, *one.timing_notes):
            names = about.setdefault(note, [])
            if one.recording not in names:
                names.append(one.recording)
    timings: dict[str, list[str]] = {}
    for one in judged:
        if one.level == "apriori" and one.recording not in timings.setdefault(one.timing, []):
            timings[one.timing].append(one.recording)
    lines = [f"* {', '.join(names)}: {timing}" for timing, names in timings.items()]
    lines += [f"* {', '.join(names)}: {note}" for note, names in about.items()]
    return "## Step times and assumptions\n\n" + "\n".join(lines) if lines else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns in which something stands; what would end a cell is escaped."""
    used = [
        place for place in range(len(head)) if place == 0 or any(cells[place] for cells in rows)
    ]
    lines = [[head[place] for place in used], ["---"] * len(used)]
    lines += [[cells[place].replace("|", "&#124;") for place in used] for cells in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
