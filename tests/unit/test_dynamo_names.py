"""Dynamo's names for our keys: one table behind flags, environment variables and keys of files."""

import json
from pathlib import Path

import pytest

from dynosim.cli import live, main
from dynosim.config import load_run
from dynosim.config.keys import all_keys
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.router.dynamo_names import (
    KEY_ALIASES,
    NAMES,
    Stated,
    our_value,
    silenced,
    stated_in,
)

PLAN = """
workload: {synthetic: {requests: 5, isl: 100, osl: 5, rate_rps: 10}}
engine: {num_gpu_blocks: 500, block_size: 16, max_model_len: 1024}
timing: {kind: fixed, prefill_ms: 1, decode_ms: 1}
cluster: {workers: 2}
router: {mode: kv, temperature: 0.25}
"""
BY_NAME = {name.name: name for name in NAMES}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(PLAN)
    return file


def ran(plan: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    """The router's section of a run with these flags."""
    capsys.readouterr()
    assert main(["run", str(plan), "--json", *flags]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    return config["router"] | {"block_size": config["engine"]["block_size"]}


def test_every_name_stands_for_a_key_that_there_is_once() -> None:
    keys = set(all_keys(RunConfig))
    assert {name.key for name in NAMES} <= keys
    assert not set(KEY_ALIASES) & keys
    for kind in ("name", "key", "option", "environment"):
        assert len({getattr(name, kind) for name in NAMES}) == len(NAMES)


def test_flags_are_the_fields(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {
        "--router-temperature": "0.5",
        "--router-kv-overlap-score-credit": "0.75",
        "--router-prefill-load-scale": "2",
        "--router-queue-threshold": "4",
        "--router-queue-policy": "wspt",
        "--router-ttl-secs": "1.5",
        "--router-prefill-load-model": "aic",
        "--kv-cache-block-size": "32",
        "--active-decode-blocks-threshold": "None",
    }
    switches = ["--no-router-kv-events", "--router-track-output-blocks"]
    found = ran(plan, capsys, *[word for pair in flags.items() for word in pair], *switches)
    assert (
        found.items()
        >= {
            "temperature": 0.5,
            "overlap_score_credit": 0.75,
            "prefill_load_scale": 2,
            "queue_threshold": 4,
            "queue_policy": "wspt",
            "ttl_ms": 1500,
            "prefill_load_model": "timing",
            "use_kv_events": False,
            "track_output_blocks": True,
            "block_size": 32,
        }.items()
    )
    assert "active_decode_blocks_threshold" not in found
    assert ran(plan, capsys, "--router-mode", "round-robin")["mode"] == "round-robin"
    assert ran(plan, capsys, "--load-aware")["load_aware"] is True


def test_what_is_set_wins_over_a_flag_and_a_flag_over_the_file(
    plan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(plan, capsys)["temperature"] == 0.25
    flag = ["--router-temperature", "0.5"]
    assert ran(plan, capsys, *flag)["temperature"] == 0.5
    assert ran(plan, capsys, "--set", "router.temperature=1", *flag)["temperature"] == 1


def test_a_simulation_does_not_depend_on_the_environment(
    plan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYN_ROUTER_TEMPERATURE", "0.75")
    assert ran(plan, capsys)["temperature"] == 0.25
    assert "DYN_ROUTER" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--router-temperature=-1", "--router-temperature: router.temperature: must be >= 0"),
        ("--router-ttl-secs=soon", "--router-ttl-secs: router.ttl_ms: expected a number"),
        ("--router-mode=kvv", "--router-mode: router.mode: expected"),
        ("--router-modes=kv", "No such option: --router-modes"),
        ("--http-port=1", "No such option: --http-port"),
    ],
)
def test_what_cannot_be_is_told_by_the_flag(
    plan: Path, capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    assert main(["run", str(plan), flag]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "function"),
    [(["serve", "frontend"], "serve_frontend"), (["deploy"], "deploy")],
)
def test_live_processes_read_the_environment_and_say_so(
    plan: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    function: str,
) -> None:
    asked: list[RunConfig] = []

    def started(path: Path, overrides: list[str], **_: object) -> int:
        asked.append(load_run(path, overrides))
        return 0

    monkeypatch.setattr(live, "_live", {function: started}.__getitem__)
    monkeypatch.setenv("DYN_ROUTER_TEMPERATURE", "0.75")
    monkeypatch.setenv("DYN_ROUTER_TTL_SECS", "2")
    monkeypatch.setenv("DYN_ROUTER_USE_KV_EVENTS", "0")
    monkeypatch.setenv("DYN_STRIP_ANTHROPIC_PREAMBLE", "")
    flags = ["--router-temperature", "0.5", "--strip-anthropic-preamble", "--http-port", "81"]
    assert main([*command, str(plan), *flags, "--set", "router.ttl_ms=7"]) == 0
    (config,) = asked
    assert (config.router.temperature, config.router.ttl_ms) == (0.5, 7)
    assert config.router.use_kv_events is False
    assert (config.live.strip_anthropic_preamble, config.live.port) == (True, 81)
    lines = capsys.readouterr().err.splitlines()
    assert "DYN_ROUTER_TTL_SECS sets router.ttl_ms=2000.0" in lines and len(lines) == 3
    monkeypatch.setenv("DYN_ROUTER_USE_KV_EVENTS", "perhaps")
    assert main([*command, str(plan)]) == 2
    assert "DYN_ROUTER_USE_KV_EVENTS: router.use_kv_events: expected" in capsys.readouterr().err


def test_processes_of_a_deployment_are_told_nothing_twice() -> None:
    assert stated_in({"DYN_ROUTER_MODE": "kv"})[0] == "router.mode=kv"
    assert stated_in({"DYN_ROUTER_MODE": "kv"} | silenced()) == []
    assert set(silenced()) == {name.environment for name in NAMES}


def test_files_and_sets_may_use_the_names_as_keys(tmp_path: Path, plan: Path) -> None:
    plan.write_text(PLAN.replace("temperature: 0.25", "router_ttl_secs: 3, router_temperature: 1"))
    router = load_run(plan).router
    assert (router.ttl_ms, router.temperature) == (3000, 1)
    router = load_run(plan, ["router.router_predicted_ttl_secs=0.5"]).router
    assert router.predicted_ttl_ms == 500
    plan.write_text(PLAN.replace("temperature: 0.25", "ttl_ms: 1, router_ttl_secs: 3"))
    with pytest.raises(ConfigError, match=r"given beside router.ttl_ms"):
        load_run(plan)
    plan.write_text(PLAN.replace("temperature: 0.25", "router_ttl_secs: soon"))
    with pytest.raises(ConfigError, match=r"run.yaml:6: router.ttl_ms: expected a number"):
        load_run(plan)


def test_ranges_of_a_space_are_turned_into_ours() -> None:
    alias = BY_NAME["router_ttl_secs"].alias
    assert our_value(alias, [1, 2.5]) == [1000, 2500]
    assert our_value(alias, {"low": 1, "high": 2}) == {"low": 1000, "high": 2000}
    assert our_value("router.router_prefill_load_model", ["none", "aic"]) == ["none", "timing"]
    assert our_value("router.ttl_ms", [1]) == [1]
    assert our_value(alias, True) is True


def test_a_space_may_use_the_names(tmp_path: Path) -> None:
    from dynosim.config import load_sweep

    file = tmp_path / "sweep.yaml"
    file.write_text(f"name: x\n{PLAN}space: {{router.router_ttl_secs: [1, 2]}}\n")
    (dimension,) = load_sweep(file).dimensions
    assert (dimension.key, dimension.values) == ("router.ttl_ms", (1000, 2000))


def test_where_something_was_said_is_kept() -> None:
    stated = Stated.of(BY_NAME["router_temperature"], "0.5", "--router-temperature")
    assert (stated, stated.source) == ("router.temperature=0.5", "--router-temperature")
