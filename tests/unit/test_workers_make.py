"""What `serve worker` refuses before anything is started."""

import socket
from pathlib import Path
from typing import Any

import pytest

from dynosim.errors import ConfigError
from dynosim_runtime.config import load_plan
from dynosim_runtime.errors import LiveError
from dynosim_runtime.hosts import http_url, is_loopback
from dynosim_runtime.worker.attach import parse_attachment
from dynosim_runtime.worker.command import serve_worker
from dynosim_runtime.worker.make import make_served

PLAN = """
workload: {synthetic: {requests: 2, isl: 32, osl: 4, rate_rps: 1}}
engine: {num_gpu_blocks: 101}
timing: {kind: polynomial}
"""


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return {
        "plan": plan,
        "overrides": [],
        "name": "w",
        "engine": "vllm",
        "host": "127.0.0.1",
        "port": 0,
        "discovery": f"file:{tmp_path / 'workers'}",
        "model": model,
        "engine_python": None,
        "attach": None,
        "speedup": 1.0,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": Path("nowhere")}, "no config.json there"),
        ({"model": None}, "a real engine needs one"),
        ({"engine_python": Path("/no/python")}, "there is no such file"),
        ({"speedup": 3.0}, "only mock engines can be sped up"),
        ({"attach": "ftp://x"}, "not an HTTP address"),
        ({"engine": "mock", "attach": "http://127.0.0.1:1"}, "runs in the worker itself"),
        ({"engine": "mock", "speedup": 0.0}, "--speedup"),
        ({"engine": "lmdeploy"}, "expected mock, vllm"),
        ({"discovery": "zookeeper:x"}, "expected file:DIR"),
        ({"engine": "vllm-cpu", "overrides": ["engine.tensor_parallel=2"]}, "--set engine.tensor"),
        ({"engine": "vllm-cpu"}, "--set engine.block_size=32"),
        ({"engine": "sglang", "overrides": ["engine.watermark=0.1"]}, "SGLang has no such"),
        ({"engine": "trtllm", "overrides": ["engine.policy=priority"]}, "TensorRT-LLM's server"),
        ({"overrides": ["engine.blocksize=2"]}, "block_size"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_remedy(
    options: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serve_worker(**{**options, **changed})


def test_a_folder_without_a_run_file_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        serve_worker(**{**options, "plan": options["model"]})


def test_a_port_in_use_is_refused(options: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(LiveError, match="the port is in use"):
            serve_worker(**{**options, "port": other.getsockname()[1]})


@pytest.mark.parametrize(
    ("text", "url", "events"),
    [
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000", []),
        ("https://engine.local/vllm/", "https://engine.local/vllm", []),
        (
            "http://a:1?events=tcp://a:2&replay=tcp://a:3&topic=kv",
            "http://a:1",
            [("tcp://a:2", "tcp://a:3", "kv")],
        ),
        ("http://a:1?events=ipc:///tmp/x", "http://a:1", [("ipc:///tmp/x", None, "")]),
    ],
)
def test_a_running_engine_is_named_by_its_address(
    text: str, url: str, events: list[tuple[str, str | None, str]]
) -> None:
    attachment = parse_attachment(text)
    told = [(e.endpoint, e.replay_endpoint, e.topic) for e in attachment.events]
    assert (attachment.url, told) == (url, events)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:80",
        "http://",
        "http://a:99999",
        "http://a:1?event=x",
        "http://a:1?replay=tcp://b:1",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--attach"):
        parse_attachment(text)


def test_addresses_to_listen_on_and_to_connect_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_IP", "10.1.2.3")
    assert http_url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert http_url("0.0.0.0", 80) == "http://10.1.2.3:80"
    assert http_url("::1", 80) == "http://[::1]:80"
    loopback = [
        is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1")
    ]
    assert loopback == [True, True, True, False, False]


async def test_a_simulated_cpu_says_so_on_its_card(options: dict[str, Any]) -> None:
    served = make_served(
        load_plan(options["plan"], []),
        name="w",
        engine="mock-cpu",
        host="127.0.0.1",
        port=0,
        model=None,
        engine_python=None,
        attach=None,
        speedup=1.0,
    )
    card = await served.start()
    await served.stop()
    assert (card.engine, card.device) == ("mock", "cpu")
