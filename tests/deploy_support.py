"""`dynosim deploy --mock` of a plan with a controller, as a user runs it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from live_scaling_support import scaled_sections
from waiting import PATIENCE_S


class Scaled:
    """A running `dynosim deploy --mock --json`, and what it has decided so far."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.process = process
        self.out = out
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it did not start"
        self.url: str = json.loads(line)["url"]

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.out / "deployment.json").read_text())
        return document

    def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in self.status()["processes"]}

    def ready(self) -> list[str]:
        rows = self.status()["processes"]
        return [r["name"] for r in rows if r["role"] == "worker" and r["state"] == "ready"]

    def looks(self) -> list[dict[str, Any]]:
        lines = (self.out / "decisions" / "decisions-000001.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[1:]]

    def sizes(self) -> list[int]:
        """The numbers of workers that were wanted, each once in a row."""
        targets = [one["decision"]["pools"][0]["target"] for one in self.looks()]
        return [
            now for now, before in zip(targets, [None, *targets], strict=False) if now != before
        ]


@contextmanager
def scaled(folder: Path, *options: str, **sections: Any) -> Iterator[Scaled]:
    run_file, out = folder / "run.yaml", folder / "out"
    run_file.write_text(json.dumps(scaled_sections(**sections)))
    process = subprocess.Popen(
        [sys.executable, "-m", "dynosim", "deploy", str(run_file), "--mock", "--port", "0",
         "--out", str(out), "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        yield Scaled(process, out)
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


async def complete(client: httpx.AsyncClient, number: int, max_tokens: int) -> int:
    """The status of a request; 200 only if all its tokens came."""
    body = {
        "model": "mock", "prompt": [5 + number % 90] * 200, "max_tokens": max_tokens,
        "ignore_eos": True,
    }  # fmt: skip
    answer = await client.post("/v1/completions", json=body)
    if answer.status_code == 200:
        assert answer.json()["usage"]["completion_tokens"] == max_tokens
    return answer.status_code
