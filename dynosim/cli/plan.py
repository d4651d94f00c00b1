"""`dynosim plan`: one load under planner, autoscalers, fixed clusters and the bound."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.atomic import check_folder, parquet_writer, text_writer, write_files
from dynosim.cli.plan_text import print_plan
from dynosim.config import dump_run
from dynosim.errors import ConfigError
from dynosim.files.result_folder import PLAN, check_results
from dynosim.planning.document import (
    decision_lines,
    plan_document,
    replicas_table,
    timeline_rows,
    timeline_table,
)
from dynosim.planning.plan_file import read_plan_file
from dynosim.planning.study import CONTESTANTS, PlanAsked, PlanStudy, run_study

Writer = Callable[[Path], None]
FOLDERS = ("decisions", "runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanArguments:
    """What `dynosim plan` was asked for. `against` is a list with commas; empty: all."""

    file: Path
    overrides: Sequence[str]
    out: Path | None
    overwrite: bool
    as_json: bool
    against: str
    seeds: int
    attainment: float
    bin_s: float | None
    most_workers: int


def plan_command(asked: PlanArguments) -> int:
    """Run the comparison and show it; with `out`, write it too. Returns the exit code.

    Interrupted, it leaves nothing. Raises: DynosimError.
    """
    study_asked = PlanAsked(
        against=contestants(asked.against),
        num_seeds=asked.seeds,
        attainment=_attainment(asked.attainment),
        bin_s=_bin_s(asked.bin_s),
        most_workers=asked.most_workers,
    )
    file = read_plan_file(asked.file, asked.overrides)
    if asked.out is not None:
        check_folder(asked.out)
        check_results(asked.out, PLAN, overwrite=asked.overwrite)
    study = run_study(file, study_asked, _told)
    document = plan_document(study)
    if asked.out is not None:
        write_plan(asked.out, study, document)
    if asked.as_json:
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        print_plan(document)
    if asked.out is not None:
        print(f"report: {asked.out / 'report.html'}", file=sys.stderr)
    return 0


def contestants(words: str) -> tuple[str, ...]:
    """The names of a list with commas; all for an empty one. Raises: ConfigError."""
    names = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        known = ", ".join(CONTESTANTS)
        raise ConfigError(f"--against {unknown[0]}: not known (choose from {known})")
    return tuple(dict.fromkeys(names)) or CONTESTANTS


def _attainment(share: float) -> float:
    if not 0 < share <= 1:
        raise ConfigError(f"--attainment {share:g}: expected a share above 0, at most 1")
    return share


def _bin_s(bin_s: float | None) -> float | None:
    if bin_s is not None and not 0 < bin_s < float("inf"):
        raise ConfigError(f"--bin {bin_s:g}: expected seconds above 0")
    return bin_s


def _told(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_plan(out: Path, study: PlanStudy, document: dict[str, Any]) -> None:
    """Write all files of a comparison to `out`, or none; an earlier one's are gone then."""
    from dynosim.plots.plan_html import write_plan_html

    config = dump_run(study.file.fixed(study.peak))
    rows = timeline_rows(study)
    files: dict[str, Writer] = {
        # first, since the folder is known as a comparison's by it
        "report.json": text_writer(json.dumps(document, indent=2, allow_nan=False) + "\n"),
        "timeline.parquet": parquet_writer(lambda: timeline_table(study)),
        "replicas.parquet": parquet_writer(lambda: replicas_table(study)),
        "report.html": lambda path: write_plan_html(path, document, rows, config),
        **_decision_files(study),
        **{
            f"runs/{one.name}.yaml": text_writer(dump_run(one.config))
            for one in study.contestants
            if one.config is not None
        },
    }
    write_files(out, files)
    for folder in FOLDERS:
        for path in (out / folder).glob("*"):
            if f"{folder}/{path.name}" not in files:
                path.unlink()


def _decision_files(study: PlanStudy) -> dict[str, Writer]:
    """The decisions of each contestant, the seed in the name where there are several."""
    files: dict[str, Writer] = {}
    for one in study.contestants:
        for run in one.runs:
            if run.outcome.looks:
                seed = f"-seed{run.outcome.config.seed}" if len(one.runs) > 1 else ""
                lines = decision_lines(run.outcome.looks)
                files[f"decisions/{one.name}{seed}.jsonl"] = text_writer(lines)
    return files
