#!/usr/bin/env python3
"""What speculative prefill does for later turns of chats, and what it costs, on this machine.

    python benchmarks/speculative_prefill.py [--sessions 4,24] [--turns 5]

A deployment of mock workers, which take the time of a Qwen3-32B on an H200, and so many chats at
once: each turn brings 500 tokens more, gets an answer of 400, and rests for a second. Each number
of chats is served with and without the hint. Mock workers speak tokens that no text gives back, so
that without it all answers are computed anew: nowhere can the hint do more.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.launch.specs import DeployOptions

SYSTEM_TOKENS, TURN_TOKENS, ANSWER_TOKENS, PAUSE_S = 6000, 500, 400, 1.0
COUNTERS = {
    "sent": "dynosim_frontend_speculative_prefills_total{",
    "computed": "dynosim_frontend_speculative_tokens_total{",
}


@dataclass
class Seen:
    """Of all turns but first ones, in order of their ends."""

    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)
    cached_share: list[float] = field(default_factory=list)


def plan(num_workers: int) -> Any:
    """The deployment."""
    return run_config_from_dict(
        {
            "model": "Qwen/Qwen3-32B",
            "hardware": "h200_sxm",
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "roofline"},
            "cluster": {"workers": num_workers},
            "router": {"mode": "kv"},
        }
    )


async def turn(client: httpx.AsyncClient, body: dict[str, Any], seen: Seen | None) -> str:
    """One turn, streamed; returns its answer."""
    started_s, first_s, text = time.perf_counter(), None, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            said = "".join(one["delta"].get("content") or "" for one in chunk["choices"])
            if said and first_s is None:
                first_s = time.perf_counter()
            text += said
            if chunk.get("usage") and seen is not None:
                usage = chunk["usage"]
                cached = usage["prompt_tokens_details"]["cached_tokens"]
                seen.cached_share.append(cached / usage["prompt_tokens"])
    assert first_s is not None
    if seen is not None:
        seen.ttft_ms.append((first_s - started_s) * 1e3)
        seen.itl_ms.append((time.perf_counter() - first_s) * 1e3 / (ANSWER_TOKENS - 1))
    return text


async def chat(
    client: httpx.AsyncClient, name: str, num_turns: int, *, is_ahead: bool, seen: Seen
) -> None:
    """A session from its first turn to its last."""
    messages = [{"role": "system", "content": f"{name}{'.' * SYSTEM_TOKENS}"}]
    for number in range(num_turns):
        messages.append({"role": "user", "content": "?" * TURN_TOKENS})
        body = {"model": "Qwen/Qwen3-32B", "messages": messages, "max_tokens": ANSWER_TOKENS,
                "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        if is_ahead and number < num_turns - 1:
            body["nvext"] = {"agent_hints": {"speculative_prefill": True}}
        text = await turn(client, body, seen if number else None)
        messages.append({"role": "assistant", "content": text})
        await asyncio.sleep(PAUSE_S)


async def counted(client: httpx.AsyncClient) -> dict[str, float]:
    """What the frontend counts of what it sent ahead."""
    page = (await client.get("/metrics")).text.splitlines()
    return {
        name: sum(float(line.split()[-1]) for line in page if line.startswith(begin))
        for name, begin in COUNTERS.items()
    }


async def measure(num_sessions: int, num_turns: int, num_workers: int, *, is_ahead: bool) -> str:
    """So many chats on a fresh deployment; returns a row of the table."""
    seen = Seen()
    with tempfile.TemporaryDirectory() as folder:
        options = DeployOptions(out=Path(folder) / "out", engine="mock", port=0)
        async with (
            LocalDeployment(plan(num_workers), options) as deployed,
            httpx.AsyncClient(base_url=deployed.url, timeout=600) as client,
        ):

            async def one(number: int) -> None:
                await asyncio.sleep(number * (PAUSE_S + 8) / num_sessions)
                name = f"{number:06d}"
                await chat(client, name, num_turns, is_ahead=is_ahead, seen=seen)

            await asyncio.gather(*map(one, range(num_sessions)))
            ahead = await counted(client)
    p50, p90 = np.percentile(seen.ttft_ms, (50, 90))
    cells = [num_sessions, "yes" if is_ahead else "no", f"{100 * np.mean(seen.cached_share):.1f} %",
             f"{p50:.0f}", f"{p90:.0f}", f"{np.mean(seen.itl_ms):.1f}", f"{ahead['sent']:.0f}",
             f"{ahead['computed']:.0f}"]  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sessions", default="4,24")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(given)
    print("| chats at once | hint | cached | TTFT p50, ms | p90 | ITL, ms | sent ahead | tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for count in map(int, args.sessions.split(",")):
        for is_ahead in (False, True):
            row = measure(count, args.turns, args.workers, is_ahead=is_ahead)
            print(asyncio.run(row), flush=True)


if __name__ == "__main__":
    main()
