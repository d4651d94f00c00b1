"""What a process must not import to do its work: each costs more than it gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOT_FOR_A_RUN = {
    "aiconfigurator_core": "a second; its tables are kept on disk",
    "asyncio": "live only",
    "jinja2": "pages",
    "matplotlib": "pictures",
    "multiprocessing": "sweeps only",
    "numpy.random": "synthetic workloads only",
    "orjson": "writes columns of traces",
    "plotly": "pictures",
    "polars": "tables, with --out",
    "rich": "progress of what takes more than a second",
    "scipy": "fits only",
    "simpy": "clusters scripted in Python only",
    "dynosim.routerlog": "with --router-log",
    "dynosim.router.kv_router": "where no load-only mode decides",
    "dynosim.silicon.auto_capacity": "where the number of blocks is not given",
    "dynosim.sweep": "sweeps only",
    "dynosim.timing.fitted": "fitted step times only",
    "dynosim_runtime": "live only",
}
NOT_FOR_HELP = {
    **NOT_FOR_A_RUN,
    "importlib.metadata": "reads what is installed; the version stands in the package",
    "numpy": "half of what a run imports",
    "pydantic": "no file is read",
    "yaml": "no file is read",
    "msgspec": "no trace is read",
    "dynosim.config": "no file is read",
}
NOT_FOR_LIVE = {
    "matplotlib": "pictures",
    "polars": "tables",
    "scipy": "fits only",
    "transformers": "seconds; where a model has no other tokenizer",
    "dynosim.cluster": "the twin's",
}


def told_by(code: str, telling: str, *arguments: str) -> list[str]:
    """What `telling` is in a fresh process after `code`."""
    told = f"import sys, json\n{code}\njson.dump(list({telling}), sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", told, *arguments], capture_output=True, text=True, check=True
    )
    names: list[str] = json.loads(done.stderr)
    return names


def unwanted(code: str, reasons: dict[str, str], *arguments: str) -> dict[str, str]:
    names = told_by(code, "sys.modules", *arguments)
    return {name: why for name, why in reasons.items() if name in names}


RUN = "from dynosim.cli import main; assert main(['run', *sys.argv[1:]]) == 0"


@pytest.fixture
def run_file(tmp_path: Path) -> str:
    trace = tmp_path / "trace.jsonl"
    row = {"timestamp": 0, "input_length": 40, "output_length": 5, "hash_ids": [1]}
    trace.write_text(json.dumps(row) + "\n")
    path = tmp_path / "run.yaml"
    path.write_text(
        f"workload: {{trace: {trace}, format: mooncake}}\n"
        "engine: {num_gpu_blocks: 100}\n"
        "timing: {kind: polynomial}\n"
        "cluster: {workers: 2}\n"
    )
    return str(path)


def test_a_run_imports_what_it_needs_only(run_file: str) -> None:
    assert unwanted(RUN, NOT_FOR_A_RUN, run_file) == {}


def test_a_short_run_on_a_terminal_imports_no_more(run_file: str) -> None:
    short = "from dynosim.experiment import progress; progress.QUIET_S = 600.0"
    on_terminal = f"sys.stderr.isatty = lambda: True\n{short}\n{RUN}"
    assert unwanted(on_terminal, NOT_FOR_A_RUN, run_file) == {}


def test_other_runs_import_what_they_ask_for(run_file: str) -> None:
    assert "dynosim.router.kv_router" in told_by(
        RUN, "sys.modules", run_file, "--set", "router.mode=kv"
    )


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_next_to_nothing(option: str) -> None:
    asking = f"from dynosim.cli import main; assert main(['{option}']) == 0"
    assert unwanted(asking, NOT_FOR_HELP) == {}


@pytest.mark.parametrize("module", ["serving.command", "worker.command"])
def test_live_processes_import_nothing_of_the_twin_and_no_pictures(module: str) -> None:
    pytest.importorskip("aiohttp")
    assert unwanted(f"import dynosim_runtime.{module}", NOT_FOR_LIVE) == {}


def test_a_run_starts_no_threads_of_numpy(run_file: str) -> None:
    counting = f"{RUN}\nfrom pathlib import Path"
    assert len(told_by(counting, "map(str, Path('/proc/self/task').iterdir())", run_file)) == 1


def test_sections_seek_no_plugins_and_leave_them_to_models_of_others(run_file: str) -> None:
    seen = (
        "import os\nfrom importlib import metadata\nasked = []\nfound = metadata.entry_points\n"
        "def ask(**by):\n    asked.append(by.get('group'))\n    return found(**by)\n"
        "metadata.entry_points = ask\n"
        "os.environ.pop('PYDANTIC_DISABLE_PLUGINS', None)\n"
        "from dynosim.config import load_run\nload_run(sys.argv[1])\nasked.append('our own')\n"
        "from pydantic import BaseModel\nclass Theirs(BaseModel):\n    pass\n"
    )
    assert told_by(seen, "asked", run_file) == ["our own", "pydantic"]
