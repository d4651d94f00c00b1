"""Every command that reads a file, with files that no one should write: one message, exit 2."""

from pathlib import Path

import pytest

from dynosim.cli import main

DEEP = 5_000  # levels: beyond what any parser's stack holds
CONTENTS = {
    "lists in lists": b"[" * DEEP,
    "objects in objects": b'{"a":' * DEEP,
    "a deep field": b'{"timestamp":0,"input_length":9,"output_length":3,"hash_ids":' + b"[" * DEEP,
    "a number, then a brace": b"12{\n",
    "an object of a number": b'{"x":1}\n',
    "two of them": b'{"x":1}\n{"x":2}\n',
    "a report that is none": b'{"name":"a","report":5}\n{"name":"b","report":[1]}\n',
    "a list": b"[]\n",
    "null": b"null\n",
    "a text": b'"a"\n',
    "an infinite number": b"1e999\n",
    "a number of 5,000 digits": b'{"a":' + b"9" * 5000 + b"}\n",
    "nothing but such a number": b"9" * 5000,
    "bytes that are no text": b'{"a":"\xff"}\n',
    "zeros": b"\0\0\1",
    "half a surrogate": b'{"name":"\\ud800","x":"1"}\n',
    "a set-up that is none": b'{"setup":3}\n{"arrival_ms":"a"}\n',
    "a sweep's header": b'{"dynosim_sweep":1}\n',
}
COMMANDS = {  # name: (suffix of the file, arguments; FILE stands for it)
    "trace inspect": ("jsonl", ["trace", "inspect", "FILE"]),
    "trace inspect, csv": ("csv", ["trace", "inspect", "FILE"]),
    "trace reuse": ("jsonl", ["trace", "reuse", "FILE"]),
    "trace convert": ("jsonl", ["trace", "convert", "FILE", "o.jsonl", "--from", "jsonl"]),
    "trace synth": ("yaml", ["trace", "synth", "o.jsonl", "--config", "FILE"]),
    "run": ("yaml", ["run", "FILE"]),
    "run, its trace": ("jsonl", ["run", "run.yaml", "--set", "workload.trace=FILE"]),
    "run, fitted times": (
        "json",
        ["run", "run.yaml", "--set", "timing={kind: fitted, file: FILE}"],
    ),
    "run, a profile": ("json", ["run", "run.yaml", "--set", "timing={kind: profile, file: FILE}"]),
    "run, a packed profile": (
        "npz",
        ["run", "run.yaml", "--set", "timing={kind: profile, file: FILE}"],
    ),
    "run, its model": ("json", ["run", "roofline.yaml", "--set", "model=FILE"]),
    "run, its hardware": ("yaml", ["run", "roofline.yaml", "--set", "hardware=FILE"]),
    "sweep": ("yaml", ["sweep", "FILE", "--out", "out"]),
    "rank": ("jsonl", ["rank", "FILE", "FILE"]),
    "rank, another metric": ("json", ["rank", "FILE", "FILE", "--metric", "x"]),
    "rank, a table": ("parquet", ["rank", "FILE", "FILE"]),
    "conformance": ("json", ["conformance", "FILE"]),
    "replay-log": ("jsonl", ["replay-log", "FILE"]),
    "calibrate": ("jsonl", ["calibrate", "--measurements", "FILE", "--out", "o.json"]),
    "deploy": ("yaml", ["deploy", "FILE", "--mock", "--out", "out"]),
    "validate": ("yaml", ["validate", "FILE", "--url", "http://127.0.0.1:9", "--out", "out"]),
}
ROW = '{"timestamp": 0, "input_length": 100, "output_length": 5, "hash_ids": [1]}\n'
RUN = "workload: {trace: ok.jsonl}\nengine: {num_gpu_blocks: 2000, block_size: 16}\n"
TIMED = RUN + "timing: {kind: fixed, prefill_ms: 10, decode_ms: 5}\n"
ROOFLINE = f"""{RUN.replace("2000", "3000")}
timing: {{kind: roofline}}
model: Qwen/Qwen3-32B
hardware: h200_sxm
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ok.jsonl").write_text(ROW)
    Path("run.yaml").write_text(TIMED)
    Path("roofline.yaml").write_text(ROOFLINE)
    return tmp_path


def test_the_runs_are_good_but_for_the_file(folder: Path) -> None:
    assert main(["run", "run.yaml"]) == 0
    assert main(["run", "roofline.yaml"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_any_file_gets_one_message_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    suffix, arguments = COMMANDS[command]
    hostile = folder / f"hostile.{suffix}"
    before = sorted(path.name for path in folder.iterdir())
    for name, content in CONTENTS.items():
        hostile.write_bytes(content)
        code = main([part.replace("FILE", str(hostile)) for part in arguments])
        printed = capsys.readouterr()
        assert code == 2, (name, printed.err)
        assert printed.out == "", name
        assert printed.err.startswith("error: "), (name, printed.err)
        assert hostile.name in printed.err, (name, printed.err)
        assert len(printed.err) < 1000, name
        hostile.unlink()
        assert sorted(path.name for path in folder.iterdir()) == before, name


HUGE = {
    "requests: 1000000000000, isl: 100": "requests",
    "sessions: 1000000000000, isl: 100": "sessions",
    "sessions: 10, turns: 1.0e+11, isl: 100": "turns",
    "requests: 1000, isl: 1.0e+9": "block_size",
    "requests: 10, isl: 1.0e+300": "isl",
    "requests: 10, isl: 100, prefix_groups: 1000000000000": "prefix_groups",
}


@pytest.mark.parametrize("load", HUGE)
def test_a_load_that_fits_in_no_memory_is_refused_by_its_key(
    folder: Path, capsys: pytest.CaptureFixture[str], load: str
) -> None:
    synthetic = f"workload.synthetic={{{load}, osl: 10, rate_rps: 1}}"
    code = main(["run", "run.yaml", "--set", "workload.trace=null", "--set", synthetic])
    message = capsys.readouterr().err
    assert code == 2, message
    assert message.startswith("error: ") and f"{HUGE[load]}: " in message
    assert "Traceback" not in message


RESULT_FILES = {
    "report.json": ["diff", "out", "out"],
    "requests.parquet": ["diff", "out", "out"],
    "config.yaml": ["diff", "out", "out"],
    "requests.parquet, again": ["why", "out", "0"],
    "config.yaml, again": ["why", "out", "0"],
}


@pytest.mark.parametrize("what", RESULT_FILES)
def test_any_file_in_a_folder_of_results_gets_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    assert main(["run", "run.yaml", "--out", "out"]) == 0
    hostile = Path("out") / what.partition(",")[0]
    for name, content in CONTENTS.items():
        hostile.write_bytes(content)
        capsys.readouterr()
        assert main(RESULT_FILES[what]) == 2, name
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: "), (name, printed.err)
        assert hostile.name in printed.err and len(printed.err) < 1000, (name, printed.err)
