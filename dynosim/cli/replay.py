"""`dynosim replay-log`: the verdict on a router's log."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dynosim.routerlog.replay import Verdict, replay_log


def replay_log_command(path: Path, *, as_json: bool) -> int:
    """Print whether all decisions came out again; returns 0, or 1 if one differs.

    Raises: ConfigError for a file that is not a router log, or a folder without one.
    """
    verdict = replay_log(path)
    if as_json:
        document = {"equal": verdict.is_equal, **asdict(verdict)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print_verdict(path, verdict)
    return 0 if verdict.is_equal else 1


def _print_verdict(path: Path, verdict: Verdict) -> None:
    for note in verdict.notes:
        print(f"note: {note}")
    if verdict.is_equal:
        files = f"{verdict.num_files} files, " if path.is_dir() else ""
        counts = f"{verdict.num_decisions} decisions, {verdict.num_entries} entries"
        print(f"{files}{counts}: all equal")
        return
    file = path if verdict.file is None else path / verdict.file
    print(f"{file}:{verdict.line}: the decision at {verdict.now_ms} ms differs")
    print(f"  logged:  {json.dumps(verdict.logged)}")
    print(f"  derived: {json.dumps(verdict.derived)}")
