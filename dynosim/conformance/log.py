"""Step logs in the golden files' format: digests, text, comparison."""

import json
from hashlib import sha256
from typing import Any

Json = dict[str, Any]


def step_line(step: Json) -> str:
    """Canonical text of a step, over which `steps_sha256` is taken."""
    rows = ",".join(":".join(map(str, row)) for row in step["sched"])
    line = (
        f"{rows}|pre={','.join(step['pre'])}|fin={','.join(step['fin'])}"
        f"|free={step['free']}|free_end={step['free_end']}"
    )
    if "t0" in step:
        line += f"|t={step['t0']}-{step['t1']}"
    for key in ("abort", "spec", "pad", "kv", "off"):
        if key in step:
            value = step[key]
            if isinstance(value, dict):  # labels are for readers
                value = {name: part for name, part in value.items() if not name.endswith("_l")}
            line += f"|{key}=" + json.dumps(value, separators=(",", ":"), sort_keys=True)
    return line


def steps_digest(steps: list[Json]) -> str:
    """SHA-256 over the canonical lines of all steps."""
    return sha256("".join(step_line(step) + "\n" for step in steps).encode()).hexdigest()


def compact_steps(steps: list[Json]) -> list[list[int]]:
    """Runs of steps with equal totals: count, prefill tokens, decode requests, prefill requests,
    new blocks, hit tokens, preempted, finished."""
    runs: list[list[int]] = []
    for step in steps:
        prefills = [row for row in step["sched"] if row[2] == "P"]
        totals = [
            sum(row[1] for row in prefills),
            len(step["sched"]) - len(prefills),
            len(prefills),
            sum(row[4] for row in step["sched"]),
            sum(row[5] for row in step["sched"] if row[5] > 0),
            len(step["pre"]),
            len(step["fin"]),
        ]
        if runs and runs[-1][1:] == totals:
            runs[-1][0] += 1
        else:
            runs.append([1, *totals])
    return runs


def format_log(log: Json) -> str:
    """The log as JSON, one step or request a line."""
    parts = []
    for key, value in log.items():
        if key in ("steps", "requests", "steps_rle"):
            rows = ",\n".join("  " + json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f' "{key}": [\n{rows}\n ]')
        else:
            parts.append(f' "{key}": {json.dumps(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def first_difference(log: Json, golden: Json) -> str | None:
    """The first place where a log departs from a golden one, or None. Versions are not compared."""
    for key in ("steps", "steps_rle", "requests"):
        if key not in golden or key not in log:
            continue
        ours, theirs = log[key], golden[key]
        for index, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if a != b:
                return f"{key}[{index}]:\n  ours   {json.dumps(a)}\n  golden {json.dumps(b)}"
        if len(ours) != len(theirs):
            return f"{key}: ours has {len(ours)} entries, golden {len(theirs)}"
    for key, value in golden.items():
        if key not in ("vllm", "steps", "steps_rle", "requests") and log.get(key) != value:
            return f"{key}: ours {log.get(key)!r}, golden {value!r}"
    return None
