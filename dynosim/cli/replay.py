"""`dynosim replay-log`: the verdict on the log of a router, or of who scales a deployment."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dynosim.decisionlog.files import holds_decisions
from dynosim.routerlog.replay import Verdict, replay_log


def replay_log_command(path: Path, *, as_json: bool) -> int:
    """Print whether all decisions came out again; returns 0, or 1 if one differs.

    Raises: ConfigError for a file that is no such log, or a folder without one.
    """
    verdict = _verdict(path)
    if as_json:
        document = {"equal": verdict.is_equal, **asdict(verdict)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print_verdict(path, verdict)
    return 0 if verdict.is_equal else 1


def _verdict(path: Path) -> Verdict:
    if not holds_decisions(path):
        return replay_log(path)
    from dynosim.decisionlog.replay import replay_decisions  # slow to load

    return replay_decisions(path)


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
