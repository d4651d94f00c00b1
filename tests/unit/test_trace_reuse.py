"""`dynosim trace reuse`: its figures by hand, its table and picture, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dynosim.cli.trace import app
from dynosim.errors import ConfigError, TraceError


def invoke(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["reuse", *map(str, arguments)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def document(*arguments: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(invoke(*arguments, "--json"))
    return found


def trace_file(folder: Path, *prompts: tuple[int, list[int]], output: int = 1) -> Path:
    """Prompts as (tokens, hash ids of 4 tokens each)."""
    rows = [
        {"timestamp": at, "input_length": tokens, "output_length": output, "hash_ids": ids}
        for at, (tokens, ids) in enumerate(prompts)
    ]
    path = folder / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def alternating(tmp_path: Path) -> Path:
    """Two prompts of three blocks and a token, in turn."""
    first, second = (13, [1, 2, 3, 4]), (13, [5, 6, 7, 8])
    return trace_file(tmp_path, first, second, first, second)


OF_FOUR = ("--trace-block-size", "4")


def test_room_for_half_of_what_alternates_serves_nobody_but_who_foresees(alternating: Path) -> None:
    found = document(alternating, *OF_FOUR, "--capacity", "1,3,5,6,7", "--policy", "lru,arc")
    assert found["prompt_tokens"] == 52
    assert found["reusable"] == 24 / 52  # three blocks of the third prompt, three of the fourth
    hits = {
        row["blocks"]: [round(row[key] * 13) for key in ("lru", "arc", "optimal")]
        for row in found["capacities"]
    }
    assert hits == {1: [0, 0, 1], 3: [0, 0, 3], 5: [4, 4, 5], 6: [6, 6, 6], 7: [6, 6, 6]}
    assert found["lru_working_set_blocks"] == 6


def test_a_prompt_that_ends_with_its_block_computes_that_block_again(tmp_path: Path) -> None:
    aligned = trace_file(tmp_path, (8, [1, 2]), (8, [1, 2]), (9, [1, 2, 3]))
    assert document(aligned, *OF_FOUR)["reusable"] == (4 + 8) / 25


def test_answers_take_room_unless_told_otherwise(tmp_path: Path) -> None:
    """The prompt of 5 tokens and 4 computed ones of its answer fill two blocks."""
    prompts = [(5, [1, 2]), (9, [3, 4, 5]), (5, [1, 2])]
    trace = trace_file(tmp_path, *prompts, output=5)
    assert document(trace, *OF_FOUR)["lru_working_set_blocks"] == 1 + 3
    assert document(trace, *OF_FOUR, "--prompt-only")["lru_working_set_blocks"] == 1 + 2


def test_behind_a_device_capacities_are_the_hosts(alternating: Path) -> None:
    found = document(alternating, *OF_FOUR, "--device", "4", "--capacity", "2,3,6")
    assert round(found["device"] * 13) == 2
    rows = [[round(row[key] * 13) for key in ("lru", "optimal")] for row in found["capacities"]]
    assert rows == [[2, 6], [2, 6], [6, 6]]
    assert found["enough"] == {"share": 0.9, "lru_blocks": 6, "optimal_blocks": 2}


def test_enough_room_is_asked_of_a_share_of_what_can_be_had(alternating: Path) -> None:
    found = document(alternating, *OF_FOUR, "--enough", "0.5")
    assert found["enough"] == {"share": 0.5, "lru_blocks": 5, "optimal_blocks": 3}
    text = invoke(alternating, *OF_FOUR, "--enough", "0.5", "--device", "5")
    assert "For 50% of what is reusable the device suffices." in text


def test_capacities_in_bytes_are_those_of_the_models_blocks(alternating: Path) -> None:
    """Qwen3-32B: 64 layers, 8 heads of 128, keys and values of two bytes: 1 MiB for four tokens."""
    model = ("--model", "Qwen/Qwen3-32B")
    found = document(alternating, *OF_FOUR, *model, "--capacity", "3.9MiB,7,5MB,1GB")
    assert found["bytes_per_block"] == 2**20
    assert [row["blocks"] for row in found["capacities"]] == [3, 4, 7, 953]


def test_the_table_fits_a_terminal_and_says_what_pays(alternating: Path, tmp_path: Path) -> None:
    picture = tmp_path / "reuse.png"
    text = invoke(
        alternating, *OF_FOUR, "--policy", "lru,arc", "--model", "Qwen/Qwen3-32B", "--plot", picture
    )
    assert max(map(len, text.splitlines())) <= 80
    for part in ("An endless cache has 46.2%", "LRU    ARC  optimum", "LRU needs 6 blocks"):
        assert part in text
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_trace_that_repeats_nothing_is_told_so(tmp_path: Path) -> None:
    assert "no room pays" in invoke(trace_file(tmp_path, (9, [1, 2, 3]), (9, [4, 5, 6])), *OF_FOUR)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--capacity", "10,x"], "--capacity 'x': expected blocks, as in 5000"),
        (["--capacity", "1.5"], "expected blocks"),
        (["--capacity", "-5"], "expected blocks"),
        (["--capacity", "0"], "not one block fits"),
        (["--capacity", "1GB"], "--capacity 1GB: of which model (add --model NAME)"),
        (["--device", "0.1MB", "--model", "Qwen/Qwen3-32B"], "--device 0.1MB: not one block fits"),
        (["--policy", "lru,mru"], "--policy 'mru': expected some of lru, arc"),
        (["--model", "No/Such"], "No/Such"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    alternating: Path, arguments: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        invoke(alternating, *OF_FOUR, *arguments)
    assert message in str(error.value)


def test_a_trace_without_hash_ids_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,6\n1,5,6\n")
    with pytest.raises(TraceError, match=r"a\.csv: it has no hash ids, so that reuse is unknown"):
        invoke(path)


def test_a_picture_is_not_overwritten_unasked(alternating: Path, tmp_path: Path) -> None:
    picture = tmp_path / "there.png"
    picture.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--plot"):
        invoke(alternating, *OF_FOUR, "--plot", picture)
    assert picture.read_bytes() == b"mine"
