"""`dynosim trace` from its arguments to its output."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynosim.cli.trace import app
from dynosim.errors import ConfigError, TraceError

SYNTH = ["--requests", "20", "--isl", "lognormal:mean=900,std=300,max=4000", "--osl", "9"]


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_synth_convert_and_inspect_work_together(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl.gz", tmp_path / "b.csv"
    made = json.loads(invoke("synth", source, *SYNTH, "--rate-rps", "4", "--json"))
    assert made["requests"] == 20
    converted = json.loads(invoke("convert", source, target, "--json"))
    assert converted["lost"] == ["hash_ids"]
    seen = json.loads(invoke("inspect", target, "--json"))
    assert seen["input_tokens"] == made["input_tokens"]
    assert seen["format"] == "azure"
    assert "hash_ids" in invoke("convert", source, target, "--overwrite")


def test_inspect_prints_and_draws(tmp_path: Path) -> None:
    source, figure = tmp_path / "a.jsonl", tmp_path / "a.png"
    invoke("synth", source, *SYNTH, "--rate-rps", "4", "--turns", "2", "--think-time-ms", "500")
    text = invoke("inspect", source, "--block-size", "16", "--plot", figure)
    for part in ("20 in", "input tokens", "0.5 s before a later turn", "blocks of 16 tokens"):
        assert part in text
    assert figure.exists()


def test_flags_override_the_file_and_the_seed_comes_from_it(tmp_path: Path) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text("seed: 3\nsynthetic: {sessions: 9, isl: 100, osl: 5, rate_rps: 2}\n")
    names = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    invoke("synth", names[0], "--config", config, "--requests", "4")
    invoke("synth", names[1], "--config", config, "--requests", "4", "--seed", "3")
    invoke("synth", names[2], "--config", config, "--requests", "4", "--seed", "4")
    first, second, third = (path.read_bytes() for path in names)
    assert first == second != third
    assert first.count(b"\n") == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "the file: expected keys"),
        ("a: [", "spec.yaml:2: not YAML"),
        ("seed: x", "seed: expected an integer"),
        ("{requests: 3, isl: 4, osl: 4, rate: 4}", "rate: unknown key"),
    ],
)
def test_bad_descriptions_write_nothing(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(f"{text}\n")
    with pytest.raises(ConfigError, match=message):
        invoke("synth", tmp_path / "a.jsonl", "--config", config)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


def test_bad_distributions_and_traces_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="osl: expected a number, or a distribution"):
        invoke("synth", tmp_path / "a.jsonl", "--requests", "3", "--isl", "3", "--osl", "some")
    with pytest.raises(ConfigError, match="osl: expected name=value after normal:, got '4'"):
        invoke("synth", tmp_path / "a.jsonl", "--requests", "3", "--isl", "3", "--osl", "normal:4")
    with pytest.raises(TraceError, match="no such file"):
        invoke("inspect", tmp_path / "a.jsonl")


@pytest.mark.parametrize("command", ["inspect", "convert", "synth"])
def test_every_command_has_an_example_in_its_help(command: str) -> None:
    assert f"Example: dynosim trace {command}" in " ".join(invoke(command, "--help").split())
