"""`dynosim why`: why requests of a finished run waited, from the run simulated once more."""

import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynosim.atomic import write_files
from dynosim.cli.why_text import Told, print_story
from dynosim.errors import ConfigError
from dynosim.experiment.again import read_requests, run_again
from dynosim.experiment.run import RunOutcome
from dynosim.files.result_folder import check_files
from dynosim.metrics.choice_words import choice_words
from dynosim.metrics.story import Stories
from dynosim.metrics.wait_words import sentence

if TYPE_CHECKING:
    import polars as pl

    from dynosim.router.witness import SeenChoice

SCHEMA = "dynosim.why/1"
_NEAREST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyArguments:
    """What `dynosim why` was asked for: one request, the slowest, a trace, or several of these."""

    folder: Path
    request_id: str | None
    slowest: int | None
    as_json: bool
    perfetto: Path | None
    overwrite: bool = False


def why_command(asked: WhyArguments) -> int:
    """Tell why. Raises: ConfigError; what simulating the run again may raise."""
    if asked.request_id is None and asked.slowest is None and asked.perfetto is None:
        raise ConfigError(
            "why: nothing asked (give the id of a request, --slowest 5, or --perfetto FILE)"
        )
    if asked.request_id is not None and asked.slowest is not None:
        raise ConfigError("why: give the id of a request or --slowest, not both")
    if asked.perfetto is not None:
        check_files([asked.perfetto], overwrite=asked.overwrite, option="--perfetto")
    table = read_requests(asked.folder)
    indices = _asked_requests(asked, table)
    outcome, choices = run_again(asked.folder, table, indices)
    stories = Stories(outcome.result, choices)
    if asked.perfetto is not None:
        _write_trace(asked.perfetto, outcome)
    told = [_told(outcome, stories, index) for index in indices]
    if asked.as_json:
        document = {
            "schema": SCHEMA,
            "run": str(asked.folder),
            "requests": [one.to_dict() for one in told],
        }
        sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
    else:
        for place, one in enumerate(told):
            print_story(one, is_brief=asked.slowest is not None, is_first=place == 0)
    return 0


def _asked_requests(asked: WhyArguments, table: "pl.DataFrame") -> list[int]:
    """Indices of the requests that are asked about. Raises: ConfigError for an unknown one."""
    if asked.slowest is not None:
        ranked = table.with_row_index("index").drop_nulls("ttft_ms")
        ranked = ranked.sort("ttft_ms", descending=True, maintain_order=True)
        return [int(index) for index in ranked["index"].head(asked.slowest)]
    if asked.request_id is None:
        return []
    ids: list[str] = table["request_id"].to_list()
    if asked.request_id in ids:
        return [ids.index(asked.request_id)]
    near = difflib.get_close_matches(asked.request_id, ids, _NEAREST, cutoff=0.0)
    raise ConfigError(
        f"{asked.folder}: no request {asked.request_id!r} among {len(ids):,}; nearest: "
        f"{', '.join(near)} (or --slowest 5)"
    )


def _told(outcome: RunOutcome, stories: Stories, index: int) -> Told:
    """All that is to be told of a request."""
    ids = outcome.trace.request_ids

    def name(other: int) -> str:
        return str(other) if ids is None else ids[other]

    wait, choice = stories.waits.of(index), stories.choice_of(index)
    words = _choice_words(outcome, choice)
    if wait is None:
        end = stories.of(index)[-1:]
        why = end[0].facts.get("error") or end[0].facts["status"] if end else "it never arrived"
        return Told(name(index), f"no first token: {why}", words, None, stories.of(index), name)
    said = sentence(wait, name, choice=words)
    return Told(name(index), said, words, wait, stories.of(index), name)


def _choice_words(outcome: RunOutcome, choice: "SeenChoice | None") -> str:
    """Why its worker was chosen, as far as anybody chose."""
    router = outcome.config.router
    decided_by = router.policy or router.mode
    if choice is not None:
        return choice_words(choice, decided_by)
    if len(outcome.result.workers) == 1:
        return "there is one worker only"
    return f"{decided_by} chose it"


def _write_trace(path: Path, outcome: RunOutcome) -> None:
    from dynosim.plots.perfetto import write_perfetto

    title = outcome.config.name

    def write(scratch: Path) -> None:
        write_perfetto(scratch, outcome.result, outcome.trace, title)

    write_files(path.parent, {path.name: write})
    print(f"trace: {path} (open it in https://ui.perfetto.dev)", file=sys.stderr)
