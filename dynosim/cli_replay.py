"""`dynosim replay-log`: the verdict on a router's log."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from dynosim.replay_log import replay_log


def replay_log_command(path: Path, *, as_json: bool) -> int:
    """Print whether all decisions came out again; returns 0, or 1 if one differs.

    Raises: ConfigError for a file that is not a router log.
    """
    verdict = replay_log(path)
    if as_json:
        document = {"equal": verdict.is_equal, **asdict(verdict)}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    elif verdict.is_equal:
        print(f"{verdict.num_decisions} decisions, {verdict.num_entries} entries: all equal")
    else:
        print(f"{path}:{verdict.line}: the decision at {verdict.now_ms} ms differs")
        print(f"  logged:  {json.dumps(verdict.logged)}")
        print(f"  derived: {json.dumps(verdict.derived)}")
    return 0 if verdict.is_equal else 1
