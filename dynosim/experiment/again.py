"""A finished run once more, with what its reports left out: what single requests did, and why.

The same configuration, trace and seed give the same run, so nothing of it has to be kept: it is
simulated again and compared with what the folder holds.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dynosim.config import load_run
from dynosim.errors import ConfigError
from dynosim.experiment.run import RunOutcome, run
from dynosim.metrics import request_table
from dynosim.router.witness import ChoiceWitness, SeenChoice

if TYPE_CHECKING:
    import polars as pl

CONFIG, REQUESTS = "config.yaml", "requests.parquet"
_EXACT = ("request_id", "input_tokens", "output_tokens", "cached_tokens", "prefill_worker_id",
          "preemptions", "status")  # fmt: skip
_TIMES = ("arrival_ms", "dispatch_ms", "first_token_ms", "finish_ms")
_TOLERANCE_MS = 1e-3


def read_requests(folder: Path) -> "pl.DataFrame":
    """The request table of a run's folder. Raises: ConfigError if it is not one."""
    import polars as pl

    if not folder.is_dir():
        raise ConfigError(f"{folder}: not a folder (give the --out of a `dynosim run`)")
    if not (folder / REQUESTS).is_file() or not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder}: {_what_it_is(folder)}")
    try:
        table = pl.read_parquet(folder / REQUESTS)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigError(f"{folder / REQUESTS}: not readable Parquet: {error}") from None
    missing = [name for name in (*_EXACT, *_TIMES, "ttft_ms") if name not in table.columns]
    if missing:
        raise ConfigError(
            f"{folder / REQUESTS}: no column {missing[0]}: written by another version? (make it "
            f"anew: dynosim run {folder / CONFIG} --out {folder} --overwrite)"
        )
    return table


def run_again(
    folder: Path, table: "pl.DataFrame", watched: Collection[int] = ()
) -> tuple[RunOutcome, list[SeenChoice]]:
    """Simulate the run of a folder again, with its trail, and with what was weighed for `watched`.

    `table` is what `read_requests` gave, `watched` are indices of requests.
    Raises: ConfigError if the run comes out otherwise; what loading and running it may raise.
    """
    config = load_run(folder / CONFIG)
    witness = ChoiceWitness(watched)
    outcome = run(config, record_trail=True, witness=witness)
    differs = _difference(table, request_table(outcome.result, outcome.trace))
    if differs:
        raise ConfigError(
            f"{folder}: simulated again, the run comes out otherwise ({differs}): the trace, the "
            "step times or dynosim has changed since (make it anew: dynosim run "
            f"{folder / CONFIG} --out {folder} --overwrite)"
        )
    return outcome, witness.choices


def _difference(old: "pl.DataFrame", new: "pl.DataFrame") -> str:
    """The first thing in which two request tables differ; empty if they are equal."""
    if len(old) != len(new):
        return f"{len(new):,} requests, {len(old):,} before"
    for name in (*_EXACT, *_TIMES):
        before, now = old[name], new[name]
        if before.dtype != now.dtype:
            return f"{name} is {now.dtype}, {before.dtype} before"
        differs = ~before.eq_missing(now).to_numpy()
        if name in _TIMES:  # the last digits may be those of another order of sums
            old_ms, new_ms = (one.cast(float).fill_null(np.nan).to_numpy() for one in (before, now))
            differs &= ~np.isclose(old_ms, new_ms, rtol=1e-9, atol=_TOLERANCE_MS)
        if differs.any():
            row = int(np.argmax(differs))
            return f"{name} of request {old['request_id'][row]}: {now[row]}, {before[row]} before"
    return ""


def _what_it_is(folder: Path) -> str:
    if (folder / "trials.parquet").is_file() or (folder / "ledger.jsonl").is_file():
        return (
            f"a sweep's folder, not a run's (run one of its bests: dynosim run "
            f"{folder}/agg/top1/{CONFIG} --out NEW)"
        )
    if (folder / CONFIG).is_file():
        return (
            f"holds a configuration and no {REQUESTS} (make it: dynosim run {folder / CONFIG} "
            "--out NEW)"
        )
    return "not the folder of a run (give the --out of a `dynosim run`)"
