"""The harness on made-up deployments of which the fit knows neither form nor constants."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "fidelity_cases.py"
    spec = importlib.util.spec_from_file_location("fidelity_cases", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fidelity_cases"] = module
    spec.loader.exec_module(module)
    return module


# Eight seconds each: one of them with every run of the tests, the others before a commit lands.
NAMES = [
    "unknown-a6000",
    pytest.param("qwen8b-4090-tight", marks=pytest.mark.live),
    pytest.param("a3b-h100-moderate", marks=pytest.mark.live),
]


@pytest.mark.parametrize("name", NAMES)
def test_decode_is_learned_from_the_first_requests(
    cases: ModuleType, tmp_path: Path, name: str
) -> None:
    """Kernels by the roofline on a card without tables, so that nothing slow is asked."""
    case = next(case for case in cases.CASES if case.name == name)
    card = {"qwen8b": "rtx_4090", "a3b": "h100_nvl"}.get(name.split("-")[0], "rtx_6000_ada")
    load = replace(case.load, requests=100, rate_rps=min(case.load.rate_rps, 4.0), outputs=120)
    engine = case.engine | {"async_scheduling": True}
    case = replace(case, hardware=card, kernels="roofline", load=load, engine=engine)
    document = cases.judge(case, tmp_path)
    for key in ("fitted", "fitted unseen"):
        for metric in ("tpot_ms", "latency_ms"):
            assert document[key][metric] < 0.01 + 2 * document["floor unseen"][metric]
    if name == "unknown-a6000":
        assert any("acme/Acme-9B" in note for note in document["notes"])
        assert "a priori" not in document


@pytest.mark.live
def test_a_log_tells_the_kv_capacity_where_it_matters(cases: ModuleType, tmp_path: Path) -> None:
    case = next(case for case in cases.CASES if case.name == "qwen8b-4090-blind")
    engine = case.engine | {"async_scheduling": True}
    load = replace(case.load, requests=200, rate_rps=3.0)  # 60 are fitted: fewer do not tell
    document = cases.judge(replace(case, load=load, engine=engine), tmp_path)
    (note,) = (note for note in document["notes"] if "KV capacity: " in note)
    assert "explain the log clearly better" in note, note
    blocks = int(note.split("KV capacity: ")[1].split()[0])
    assert blocks == pytest.approx(case.num_gpu_blocks, rel=0.05)
    assert document["fitted"]["latency_ms"] < 0.02 + 2 * document["floor"]["latency_ms"]
