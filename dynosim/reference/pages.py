"""The reference of the documentation: every key of every file, as Markdown tables."""

from collections.abc import Iterable, Iterator, Sequence

from dynosim.config.formats import REPORT_SCHEMA, SWEEP_SCHEMA
from dynosim.config.report_keys import DOCUMENT_KEYS, PREPARED_KEYS, REPORT_GROUPS, ReportKey
from dynosim.config.sweep_columns import (
    CAPACITY_COLUMNS,
    NEED_COLUMNS,
    PROBE_COLUMNS,
    SCREEN_COLUMNS,
    SIZING_COLUMNS,
    SUMMARY_KEYS,
    TRIAL_COLUMNS,
)
from dynosim.reference.catalogue import RUN, SWEEP, KeyFact, file_facts
from dynosim.reference.schemas import SCHEMAS, schema_text

_GENERATED = "<!-- Written by `make reference`; what it says stands in `dynosim/config/`. -->"


def reference_files() -> dict[str, str]:
    """Every generated file of `docs/`, by its path there."""
    return {
        "reference/keys.md": keys_page(),
        "reference/report.md": report_page(),
        **{f"schema/{name}.json": schema_text(name) for name in SCHEMAS},
    }


def keys_page() -> str:
    """Keys of run and sweep files, a table for each section."""
    facts = file_facts()
    lines = [
        _GENERATED,
        "# Keys of run and sweep files",
        "",
        "`dynosim explain KEY` says the same of one key, `dynosim schema run` and `dynosim schema "
        "sweep` are JSON Schemas for editors. A file begins with the line",
        "",
        "    # yaml-language-server: $schema=sweep.schema.json",
        "",
        "that `dynosim init` writes, and an editor that knows YAML completes keys and marks what "
        "is wrong. A key without a default must be given.",
    ]
    for title, home in (("Run files, and sweep files", RUN), ("What sweep files add", SWEEP)):
        lines += ["", f"## {title}", "", *_sections([fact for fact in facts if fact.home == home])]
    return "\n".join(lines) + "\n"


def _sections(facts: Sequence[KeyFact]) -> Iterator[str]:
    """First the keys at the top, then every section with its own."""
    yield from _fact_table(fact for fact in facts if "." not in fact.key)
    told: list[str] = []  # sections of the shape of another one, with all that is below them
    for section in dict.fromkeys(fact.key.rpartition(".")[0] for fact in facts):
        if not section or any(section.startswith(f"{other}.") for other in told):
            continue
        below = [fact for fact in facts if fact.key.rpartition(".")[0] == section]
        yield from ("", f"### `{section}`", "")
        same = {fact.same_as.rpartition(".")[0] for fact in below}
        if len(same) == 1 and "" not in same:
            told.append(section)
            yield f"Keys as those of `{same.pop()}`."
        else:
            yield from _fact_table(below)


def _fact_table(facts: Iterable[KeyFact]) -> Iterator[str]:
    yield "| key | values | default | unit | meaning |"
    yield "|---|---|---|---|---|"
    for fact in facts:
        name = fact.key.rpartition(".")[2]
        where = f" With `{fact.where}`." if fact.where else ""
        also = f" Also: {', '.join(fact.also)}." if fact.also else ""
        default = f"`{fact.default}`" if fact.default else ""
        yield _row(f"`{name}`", fact.values, default, fact.unit, f"{fact.meaning}{where}{also}")


def report_page() -> str:
    """Keys of a report, of a sweep's tables and of its summary."""
    groups = {
        **REPORT_GROUPS,
        "How the run was made ready": PREPARED_KEYS,
        "The document": DOCUMENT_KEYS,
    }
    lines = [
        _GENERATED,
        "# Keys of reports",
        "",
        "Times are in ms of virtual time; latencies are those of completed requests; what does not "
        "exist (no sample, no SLA) is null. A stable key keeps its name and meaning within a "
        "version of the format; an experimental one may change with any version of dynosim.",
        "",
        f"## `report.json` ({REPORT_SCHEMA})",
    ]
    for title, keys in groups.items():
        lines += ["", f"### {title}", "", *_key_table(keys)]
    lines += [
        "",
        "## Tables of a sweep",
        "",
        "### `trials.parquet`",
        "",
        "A row for every trial: these columns, one for every key of the space, and the report's "
        "keys (where loads were searched, those of the largest load that is carried). `KEY_low` "
        "and `KEY_high` are the ends of 95 % intervals, `VERDICT_share` the part of their replays "
        "in which a verdict holds, where replays were made.",
        "",
        *_key_table((*TRIAL_COLUMNS, *CAPACITY_COLUMNS)),
        "",
        "Where `search.screen` ranks all trials, also:",
        "",
        *_key_table(SCREEN_COLUMNS),
        "",
        "Where `load.need` asks for the fewest GPUs for a load, also:",
        "",
        *_key_table(NEED_COLUMNS),
        "",
        "### `probes.parquet`",
        "",
        "A row for every load of every layout, where loads were searched: these columns, the "
        "space's, and the report's of those that were not stopped early.",
        "",
        *_key_table(PROBE_COLUMNS),
        "",
        "### `sizing.parquet`",
        "",
        "A row for every number of workers that was tried, where `load.need` asks for a load.",
        "",
        *_key_table(SIZING_COLUMNS),
        "",
        f"## `summary.json` ({SWEEP_SCHEMA})",
        "",
        *_key_table(SUMMARY_KEYS),
    ]
    return "\n".join(lines) + "\n"


def _key_table(keys: Iterable[ReportKey]) -> Iterator[str]:
    yield "| key | unit | meaning | |"
    yield "|---|---|---|---|"
    for key in keys:
        stability = "" if key.is_stable else "experimental"
        yield _row(f"`{key.name}`", key.unit, key.meaning, stability)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
