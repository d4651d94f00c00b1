"""The shipped notebook runs on a small sweep, as CI would run it."""

from pathlib import Path

import pytest

SWEEP = """\
name: small
workload:
  synthetic: {requests: 60, isl: 400, osl: 20, rate_rps: 20, arrival: poisson}
engine: {kind: vllm, num_gpu_blocks: 2000, max_num_seqs: 32, max_num_batched_tokens: 2048}
timing: {kind: polynomial}
cluster: {mode: agg, workers: 1}
router: {mode: round-robin}
space:
  cluster.workers: [1, 2]
  engine.max_num_seqs: [8, 32]
"""


@pytest.fixture
def sweep_folder(tmp_path: Path) -> Path:
    from dynosim.config import load_sweep
    from dynosim.sweep.executor import LocalExecutor
    from dynosim.sweep.run import run_sweep

    spec = tmp_path / "small.yaml"
    spec.write_text(SWEEP)
    with LocalExecutor(1) as executor:
        outcome = run_sweep(load_sweep(spec, []), tmp_path / "out", executor)
    assert outcome.num_failed == 0, outcome.summary["not_run"]
    return outcome.folder


def load(root: Path):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(root / "notebooks" / "pareto.ipynb", as_version=4)


def test_notebook_stores_no_output(root: Path) -> None:
    for cell in load(root).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_notebook_runs_on_a_finished_sweep(
    root: Path, sweep_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("DYNOSIM_SWEEP_DIR", str(sweep_folder))
    monkeypatch.setenv("PYTHONPATH", str(root))
    notebook = load(root)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(sweep_folder)}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
