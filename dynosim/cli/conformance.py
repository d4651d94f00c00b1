"""`dynosim conformance`: scenarios in, logs or verdicts out."""

import json
import sys
from pathlib import Path

from dynosim.conformance.drive import run_scenario
from dynosim.conformance.log import Json, first_difference, format_log
from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_json


def main_command(scenarios: list[Path], golden: Path | None, as_json: bool) -> int:
    """`dynosim conformance`: print logs, or compare them with a folder of golden ones.

    Returns 0, or 1 at the first difference. Raises ConfigError for files that cannot be read.
    """
    verdicts = []
    for path in scenarios:
        log = _run(path)
        if golden is None:
            sys.stdout.write(format_log(log))
            continue
        difference = first_difference(log, _load(golden / path.name))
        verdicts.append({"scenario": path.stem, "equal": difference is None, "at": difference})
        if not as_json:
            steps = f"{log['num_steps']} steps"
            print(f"{path.stem}: {'equal, ' + steps if difference is None else 'DIFFERENT'}")
        if difference is not None:
            print(f"{path.stem}: {difference}", file=sys.stderr)
            break
    if as_json and golden is not None:
        sys.stdout.write(json.dumps({"scenarios": verdicts}, indent=2) + "\n")
    return 0 if all(verdict["equal"] for verdict in verdicts) else 1


def _run(path: Path) -> Json:
    scenario = _load(path)
    try:
        return run_scenario(scenario)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _load(path: Path) -> Json:
    try:
        loaded = parse_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return loaded
