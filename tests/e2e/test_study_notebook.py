"""The notebook of the 2 x 2 x 2 study: eight cells that are runs, effects that follow from them."""

import json
from math import log, prod
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from shared_data import ROOT

from dynosim.config.sweep_loading import load_sweep
from dynosim.sweep.space import trials_of
from dynosim.sweep.trial import request_for, run_trial

FACTORS = ("kv", "disagg", "tiers")
TELL = """
import json
named = {"runs": runs, "cells": cells, "effects": effects, "told": told}
shown = {name: table.to_dicts() for name, table in named.items()}
json.dump(shown | {"overrides": overrides, "seeds": seeds}, open("told.json", "w"))
"""


def read() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "notebooks" / "agentic_study.ipynb", as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "sweeps").symlink_to(ROOT / "sweeps")
    return folder


@pytest.fixture(scope="module")
def executed(folder: Path) -> nbformat.NotebookNode:
    """The notebook, run; a last cell has put what it found into told.json."""
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(TELL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.delenv("DYNOSIM_STUDY", raising=False)
        resources = {"metadata": {"path": str(folder)}}
        NotebookClient(notebook, timeout=600, resources=resources).execute()
    return notebook


@pytest.fixture(scope="module")
def told(executed: nbformat.NotebookNode, folder: Path) -> dict[str, Any]:
    return json.loads((folder / "told.json").read_text())


def test_it_stores_no_output() -> None:
    for cell in read().cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_each_row_is_a_run_of_its_cell(told: dict[str, Any]) -> None:
    seed = told["seeds"][-1]
    sweep = load_sweep(ROOT / "sweeps/agentic_study.yaml", [*told["overrides"], f"seed={seed}"])
    trials = trials_of(sweep)
    rows = [row for row in told["runs"] if row["seed"] == seed]
    assert len(trials) == len(rows) == 8
    for trial, row in zip(trials, rows, strict=True):
        config = trial.config
        assert config is not None and config.num_gpus == 4
        has_tiers = config.cluster.tiers is not None
        assert [row[name] for name in FACTORS] == [
            config.router.mode == "kv", config.cluster.is_disagg, has_tiers,
        ]  # fmt: skip
        if row["kv"]:
            report = run_trial(request_for(config))["report"]
            assert row["TTFT ms"] == report["mean_ttft_ms"]
            assert row["TTFT p99 ms"] == report["p99_ttft_ms"]
            assert row["tok/s"] == report["output_throughput_tok_s"]
            assert row["host"] + row["beyond"] == (report["onboarded_ratio"] or 0.0)
        sources = row["device"] + row["host"] + row["beyond"]
        assert sources == pytest.approx(row["reused"], rel=1e-12)
        assert (row["host"] + row["beyond"] > 0) == has_tiers


def test_tiers_hold_what_devices_do_not(told: dict[str, Any]) -> None:
    """Whatever else is chosen: with room for all, reuse is the workload's own."""
    for row in told["runs"]:
        full = max(r["reused"] for r in told["runs"] if r["seed"] == row["seed"])
        assert (row["reused"] == pytest.approx(full, abs=0.002)) == row["tiers"]


def test_effects_are_those_of_the_rows(told: dict[str, Any]) -> None:
    """Each is a geometric mean of ratios with the sign of the levels, over the seeds."""
    assert len(told["effects"]) == 5 * 7
    for effect in told["effects"]:
        inside = effect["effect"].split(" x ")
        of_seeds = []
        for seed in told["seeds"]:
            rows = [row for row in told["runs"] if row["seed"] == seed]
            logs = [
                log(row[effect["measure"]]) * prod(1 if row[name] else -1 for name in inside)
                for row in rows
            ]
            of_seeds.append(sum(logs) / 4)
        mean = sum(of_seeds) / len(of_seeds)
        found = [log(effect[name]) for name in ("factor", "low", "high")]
        assert found == pytest.approx([mean, min(of_seeds), max(of_seeds)], abs=1e-9)
    assert told["told"] == [e for e in told["effects"] if not e["low"] <= 1 <= e["high"]]


def test_kv_routing_and_tiers_both_shorten_the_wait(told: dict[str, Any]) -> None:
    ttft = {e["effect"]: e for e in told["effects"] if e["measure"] == "TTFT ms"}
    assert ttft["kv"]["high"] < 1 and ttft["tiers"]["high"] < 1


def test_tables_and_the_picture_are_there(
    executed: nbformat.NotebookNode, told: dict[str, Any]
) -> None:
    texts = {c.source.splitlines()[-1]: c.outputs for c in executed.cells if c.get("outputs")}
    shapes = {"cells": (8, 11), "factors": (7, 6), "told": (len(told["told"]), 5)}
    for name, shape in shapes.items():
        assert texts[name][-1]["data"]["text/plain"].startswith(f"shape: {shape}"), name
    outputs = [output for outputs in texts.values() for output in outputs]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 1
    (alone,) = (row for row in told["cells"] if not any(row[name] for name in FACTORS))
    means = [row["TTFT ms"] for row in told["runs"] if not any(row[name] for name in FACTORS)]
    assert alone["TTFT ms"] == pytest.approx(sum(means) / len(means))
