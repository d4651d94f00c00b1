"""`dynosim deploy --mock` of a plan with a controller, as a user runs it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from live_scaling_support import scaled_sections
from waiting import PATIENCE_S, until


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
        return whole_rows(self.out / "decisions" / "decisions-000001.jsonl")[1:]

    def sizes(self) -> list[int]:
        """The numbers of workers that were wanted, each once in a row."""
        targets = [one["decision"]["pools"][0]["target"] for one in self.looks()]
        return [
            now for now, before in zip(targets, [None, *targets], strict=False) if now != before
        ]

    def metrics(self) -> str:
        """The controller's page, which shows what it saw when it looked last."""
        return httpx.get(self.status()["control"]["metrics"], timeout=PATIENCE_S).text


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Of a file of JSON lines to which others write; the last one may be there in part only."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


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


async def busy_until(
    deployed: Scaled, claim: Callable[[], bool], *, num_clients: int, max_tokens: int
) -> set[int]:
    """A load that does not end before it has brought about what it is to: so many clients ask again
    and again until the claim has been true once. Returns the statuses of all answers."""
    is_there = asyncio.Event()

    async def ask(client: httpx.AsyncClient, number: int) -> set[int]:
        statuses = set()
        while not is_there.is_set():
            statuses.add(await complete(client, number, max_tokens))
        return statuses

    async with httpx.AsyncClient(base_url=deployed.url, timeout=PATIENCE_S) as client:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(client, number)) for number in range(num_clients)]
            await until(claim, poll_s=0.1)
            is_there.set()
    return set().union(*(task.result() for task in tasks))
