"""Without `engine.max_model_len` the context is the named model's own, not its base's."""

import json
from pathlib import Path

import pytest

from dynosim.cli import main

RUN_FILE = """\
model: {model}
hardware: {hardware}
timing: {{kind: roofline}}
workload:
  synthetic: {{requests: 5, isl: 400, osl: 5, rate_rps: 5}}
"""

Output = pytest.CaptureFixture[str]


def run_file(folder: Path, model: str, hardware: str) -> str:
    path = folder / "run.yaml"
    path.write_text(RUN_FILE.format(model=model, hardware=hardware))
    return str(path)


@pytest.mark.parametrize(
    ("model", "hardware"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "rtx_4090"),
        ("Qwen/Qwen2.5-7B-Instruct", "a10"),
        ("Qwen/Qwen2.5-14B-Instruct", "rtx_a6000"),
    ],
)
def test_a_card_with_room_for_the_tuned_models_context_starts(
    tmp_path: Path, capsys: Output, model: str, hardware: str
) -> None:
    assert main(["run", run_file(tmp_path, model, hardware), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["max_model_len"] == 32_768
    assert report["completed_requests"] == 5


def test_a_card_without_room_for_a_long_context_says_whose_it_is(
    tmp_path: Path, capsys: Output
) -> None:
    assert main(["run", run_file(tmp_path, "Qwen/Qwen3-4B-Instruct-2507", "rtx_4090")]) == 2
    error = capsys.readouterr().err
    assert "fewer than one request of max_model_len 262,144" in error
    assert "that is the context of Qwen/Qwen3-4B-Instruct-2507" in error
    assert "state a lower engine.max_model_len" in error
