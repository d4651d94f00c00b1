"""Run files: what is accepted, and how a mistake is told."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.build.engine_command import vllm_gpu_flags
from dynosim.config import dump_run, load_run, run_config_from_dict
from dynosim.config.base import Section
from dynosim.config.cluster import ClusterConfig
from dynosim.config.engine import EngineConfig
from dynosim.config.live import LiveConfig
from dynosim.config.router import EventConfig, RouterConfig
from dynosim.config.sweep_schema import Search, SweepConstraints
from dynosim.errors import ConfigError

MINIMAL = """\
workload: {trace: t.jsonl}
engine:
  num_gpu_blocks: 100
timing: {kind: polynomial}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_run(path, overrides)
    return str(caught.value)


def test_defaults_when_little_is_given(run_file: Path) -> None:
    config = load_run(run_file)
    assert config.engine.max_num_batched_tokens == 8192
    assert config.engine.gpu_memory_utilization is None
    assert config.router.mode == "round-robin"
    assert config.workload.trace_block_size is None
    assert (config.num_gpus, config.seed, config.sla) == (1, 0, None)


def test_overrides_change_and_add_keys(run_file: Path) -> None:
    config = load_run(
        run_file, ["engine.tensor_parallel=4", "sla.ttft_ms=1e3", "cluster.workers=2"]
    )
    assert config.num_gpus == 8
    assert config.sla is not None and config.sla.ttft_ms == 1000.0


def test_override_replaces_a_whole_section(run_file: Path) -> None:
    config = load_run(run_file, ["timing={kind: fixed, prefill_ms: 10, decode_ms: 2}"])
    assert config.timing.kind == "fixed"


@pytest.mark.parametrize(
    ("line", "key", "words"),
    [
        ("engin: {}", "engin", "did you mean engine?"),
        ("engine: {num_gpu_blocks: 9, tensor_paralel: 2}", "engine.tensor_paralel",
         "did you mean engine.tensor_parallel?"),
        ("engine: {num_gpu_blocks: 9, workers: 2}", "engine.workers",
         "did you mean cluster.workers?"),
        ("engine: {num_gpu_blocks: 9, max_num_seqs: '8'}", "engine.max_num_seqs",
         "remove the quotes"),
        ("engine: {num_gpu_blocks: 9, max_num_seqs: 1.5}", "engine.max_num_seqs",
         "expected an integer"),
        ("engine: {num_gpu_blocks: true}", "engine.num_gpu_blocks", "expected auto or an integer"),
        ("engine: {num_gpu_blocks: 9, watermark: 1.0}", "engine.watermark", "must be < 1"),
        ("engine: {num_gpu_blocks: 9, kind: sglang}", "engine.kind", "not in this version yet"),
        ("cluster: {mode: disagg}", "cluster.transfer", "KV must get from prefill to decode"),
        ("cluster: {mode: both}", "cluster.mode", "expected agg or disagg"),
        ("router: {mode: round_robin}", "router.mode", "did you mean round-robin?"),
        ("timing: {kind: polynomal}", "timing.kind", "did you mean polynomial?"),
        ("timing: {}", "timing.kind", "missing"),
        ("timing: {kind: fixed, prefill_ms: 1}", "timing.decode_ms", "missing"),
        ("timing: {kind: aiconfigurator}", "model", "missing"),
        ("workload: {trace: t, concurrency: 0}", "workload.concurrency", "must be >= 1, got 0"),
        ("workload: {}", "workload.trace", "neither"),
        ("workload: {trace: t, speedup: 0}", "workload.speedup", "must be > 0"),
        ("workload: 3", "workload", "expected a section"),
        ("seed: -1", "seed", "must be >= 0"),
        ("space: {a: [1]}", "space", "dynosim sweep"),
        ("engine.block_size: 3", "engine.block_size", "below each other"),
    ],
)  # fmt: skip
def test_mistake_names_file_line_key_and_remedy(
    run_file: Path, line: str, key: str, words: str
) -> None:
    section = line.partition(":")[0]
    kept = [text for text in MINIMAL.splitlines() if not text.startswith((section, "  "))]
    if section != "engine" and "num_gpu_blocks" not in line:
        kept = [text for text in kept if not text.startswith("engine:")]
        kept.append("engine: {num_gpu_blocks: 9}")
    kept.append(line)
    run_file.write_text("\n".join(kept))
    text = message(run_file)
    place = f"{run_file}:{len(kept)}: {key}" if key != "model" else f"{run_file}: model"
    assert place in text
    assert words in text


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("{max_num_batched_tokens: 100}", "less than max_num_seqs"),
        ("{enable_chunked_prefill: false, max_model_len: 9000}", "without chunked prefill"),
        ("{long_prefill_token_threshold: 50, max_model_len: 40}", "more than max_model_len"),
        ("{max_num_active_seqs: 300}", "more than max_num_seqs"),
    ],
)
def test_refuses_what_vllm_refuses(run_file: Path, engine: str, words: str) -> None:
    merged = "{num_gpu_blocks: 100, " + engine[1:]
    assert words in message(run_file, f"engine={merged}")


def test_all_problems_come_in_one_message_in_order_of_lines(run_file: Path) -> None:
    run_file.write_text(MINIMAL.replace("100", "1") + "cluster: {workers: -1}\nsede: 3\n")
    lines = message(run_file).splitlines()
    assert lines[0] == f"{run_file}: 3 problems"
    assert ["num_gpu_blocks" in lines[1], "workers" in lines[2], "sede" in lines[3]] == [True] * 3


def test_no_more_than_twenty_problems_are_shown(run_file: Path) -> None:
    run_file.write_text(MINIMAL + "".join(f"unknown_key_{i}: 1\n" for i in range(30)))
    lines = message(run_file).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "... and 10 more"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.tp=2", "did you mean engine.tensor_parallel?"),
        ("engine.block_size=two", "expected an integer"),
        ("engine.block_size=.inf", "finite"),
        ("engine.block_size", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("model.name=x", "set model itself"),
        ("timing.prefil=3", "unknown key"),
        ("workload=[1", "not valid YAML"),
    ],
)
def test_bad_override_names_itself(run_file: Path, override: str, words: str) -> None:
    text = message(run_file, override)
    assert f"--set {override.partition('=')[0]}" in text
    assert words in text


def test_nan_from_a_dictionary_is_refused() -> None:
    data = {"workload": {"trace": "t", "speedup": float("nan")}, "timing": {"kind": "polynomial"}}
    with pytest.raises(ConfigError, match=r"workload\.speedup: must be a finite number"):
        run_config_from_dict(data, "here")


def test_dumped_file_means_the_same(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("")
    config = load_run(run_file, ["seed=7"])
    again = tmp_path / "elsewhere" / "again.yaml"
    again.parent.mkdir()
    again.write_text(dump_run(config))
    loaded = load_run(again)
    assert loaded.workload.trace == str((tmp_path / "t.jsonl").resolve())
    assert loaded.model_dump(exclude={"workload"}) == config.model_dump(exclude={"workload"})


def test_files_are_sought_here_beside_the_file_and_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "sweeps" / "run.yaml"
    path.write_text(MINIMAL)
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_run(path)
    for folder in (tmp_path, tmp_path / "sweeps", tmp_path / "elsewhere"):
        (folder / "t.jsonl").write_text("")
        assert config.resolve("t.jsonl").resolve() == folder / "t.jsonl"


def test_synthetic_lengths_may_be_numbers_or_distributions() -> None:
    synthetic = {
        "requests": 3,
        "isl": 100,
        "osl": {"dist": "lognormal", "mean": 10, "std": 3},
        "rate_rps": 2,
    }
    data = {
        "workload": {"synthetic": synthetic},
        "engine": {"num_gpu_blocks": 100},
        "timing": {"kind": "polynomial"},
    }
    spec = run_config_from_dict(data).workload.synthetic
    assert spec is not None and (spec.isl.dist, spec.isl.mean) == ("fixed", 100)
    synthetic["osl"] = {"dist": "lognormal"}
    with pytest.raises(ConfigError, match=r"workload\.synthetic\.osl\.mean"):
        run_config_from_dict(data)


SECTIONS = [
    LiveConfig, EngineConfig, ClusterConfig, RouterConfig, EventConfig, SweepConstraints, Search
]  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_of_defaults_keeps_the_rules_though_it_is_not_checked(
    section: type[Section],
) -> None:
    unchecked = section.model_construct()
    assert section.of({}) == unchecked
    assert section.of(unchecked.model_dump()) == unchecked


def test_defaults_that_are_lists_or_mappings_are_not_shared() -> None:
    one, other = LiveConfig.of({}), LiveConfig.of({})
    assert one.topology == {} and one.topology is not other.topology
    router, another = RouterConfig.of({}), RouterConfig.of({})
    assert router.policy_classes == [] and router.policy_classes is not another.policy_classes


@pytest.mark.parametrize(
    ("engine", "fraction"),
    [
        ({}, "0.92"),
        ({"version": "0.15.1"}, "0.9"),
        ({"version": "0.15.1", "gpu_memory_utilization": 0.5}, "0.5"),
    ],
)
def test_the_memory_fraction_is_the_versions_unless_it_is_stated(
    engine: dict[str, Any], fraction: str
) -> None:
    flags = vllm_gpu_flags(EngineConfig.of(engine))
    assert flags[flags.index("--gpu-memory-utilization") + 1] == fraction
