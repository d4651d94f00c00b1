"""The silicon tables' model: agrees with direct queries, survives its cache, knows its range."""

import threading
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from timing_support import engine, silicon_table, timing

from dynosim.errors import ConfigError
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.cache import load_or_build
from dynosim.silicon.table_file import load_table, save_table
from dynosim.testing.step_times import step_log
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.step import StepShape

MODEL, HARDWARE = "Qwen/Qwen3-32B", "h200_sxm"


def _settings(**changes: Any) -> Any:
    defaults = {"backend": "vllm", "backend_version": None, "step_overhead_ms": 0.0}
    return timing("aiconfigurator", **(defaults | changes))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(cache: Path) -> SiliconModel:
    return _model(cache)


def _model(cache: Path, **changes: Any) -> SiliconModel:
    settings = {"tensor_parallel": 4} | changes
    return aiconfigurator_model(
        _settings(),
        model=MODEL,
        hardware=HARDWARE,
        engine=engine(**settings),
        graph_sizes=(),
        cache_dir=cache,
    )


@pytest.fixture(scope="module")
def kernels(cache: Path, model: SiliconModel) -> SiliconModel:
    """The table as it was made, without caches, clocks and sampling of an engine that serves."""
    (path,) = cache.glob("silicon-*.npz")
    return SiliconModel(load_table(path))


@pytest.fixture(scope="module")
def handle() -> Any:
    from aiconfigurator_core.sdk import EngineHandle  # takes seconds

    return EngineHandle.compile(MODEL, HARDWARE, "vllm", tp_size=4, kvcache_quant_mode="bfloat16")


def _errors(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    errors = [abs(ours / direct - 1) for ours, direct in pairs]
    return float(np.mean(errors)), float(np.percentile(errors, 99)), max(errors)


def test_decode_agrees_with_direct_queries(kernels: SiliconModel, handle: Any) -> None:
    random = Random(1)
    pairs = []
    for _ in range(400):
        batch, context = random.randint(1, 512), random.randint(64, 100_000)
        direct = handle.predict_decode_latency(batch, context, 2)
        pairs.append((kernels.step_ms(StepShape.of_decodes(batch, batch * context)), direct))
    mean, p99, largest = _errors(pairs)
    assert mean < 0.001 and p99 < 0.01 and largest < 0.04


def test_prefill_agrees_with_direct_queries(kernels: SiliconModel, handle: Any) -> None:
    random = Random(2)
    pairs = []
    for _ in range(400):
        count = random.choice((1, 1, 2, 3, 5, 7, 20))
        new = random.randint(8, 16_384 // count)
        cached = random.choice((0, random.randint(1, 100_000)))
        direct = handle.predict_prefill_latency(count, new + cached, cached)
        pairs.append(
            (kernels.step_ms(StepShape.of_prompts(count, count * new, count * cached)), direct)
        )
    mean, p99, largest = _errors(pairs)
    assert mean < 0.001 and p99 < 0.006 and largest < 0.02


def test_mixed_step_agrees_with_direct_queries(kernels: SiliconModel, handle: Any) -> None:
    # One chunk that is the whole prompt next to decodes; the library ties their context to it.
    for new, decodes in ((2048, 64), (512, 16), (4096, 128)):
        direct = handle.mixed_step_latency(new, decodes, new, 2 * new)
        ours = kernels.step_ms(StepShape(1, new, 0, decodes, decodes * 2 * new))
        assert ours == pytest.approx(direct, rel=0.005)


def test_model_says_what_it_is(model: SiliconModel) -> None:
    assert model.source == "measured"
    assert "Qwen/Qwen3-32B on h200_sxm" in model.description
    assert any("direct queries" in note for note in model.notes)


@pytest.mark.live
def test_substituted_weights_are_derived_and_noted(tmp_path: Path) -> None:
    model = _model(tmp_path, quantization="fp8")
    assert model.source == "derived"
    assert any("fp8 weights" in note for note in model.notes)


def test_overhead_is_added_to_every_step(cache: Path, model: SiliconModel) -> None:
    slower = aiconfigurator_model(
        _settings(step_overhead_ms=1.5),
        model=MODEL,
        hardware=HARDWARE,
        engine=engine(tensor_parallel=4),
        graph_sizes=(),
        cache_dir=cache,
    )
    for step in ((1, 100, 0, 0, 0), (0, 0, 0, 5, 1000), (2, 300, 64, 5, 1000)):
        assert slower.step_ms(StepShape(*step)) == pytest.approx(
            model.step_ms(StepShape(*step)) + 1.5
        )
    assert slower.step_ms(StepShape()) == 0


def test_second_use_does_not_touch_the_library(
    cache: Path, model: SiliconModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr("dynosim.silicon.extract.extract_table", refuse)
    again = _model(cache)
    assert again.step_ms(StepShape(1, 700, 30, 9, 9000)) == model.step_ms(
        StepShape(1, 700, 30, 9, 9000)
    )


def test_what_the_tables_lack_points_to_the_roofline(tmp_path: Path) -> None:
    for hardware, message in (("l4", "kind: roofline"), ("h200", "did you mean h200_sxm")):
        with pytest.raises(ConfigError, match=message):
            aiconfigurator_model(
                _settings(), model=MODEL, hardware=hardware, engine=engine(), cache_dir=tmp_path
            )
    with pytest.raises(ConfigError, match=r"no measurements of Qwen.*kind: roofline"):
        _model(tmp_path, quantization="fp7")
    with pytest.raises(ConfigError, match="does not divide"):
        _model(tmp_path, tensor_parallel=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_damaged_table_is_built_again(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "table.npz"
    save_table(silicon_table(), path)
    path.write_bytes(path.read_bytes()[:5000] if content is None else content)
    table = load_or_build(path, load=load_table, build=silicon_table, save=save_table)
    assert table.max_tokens == 512
    assert load_table(path).max_tokens == 512


def test_unwritable_cache_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    path = blocked / "table.npz"
    table = load_or_build(path, load=load_table, build=silicon_table, save=save_table)
    assert table.max_tokens == 512


def test_concurrent_writers_leave_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                path.unlink(missing_ok=True)
                load_or_build(path, load=load_table, build=silicon_table, save=save_table)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [file.name for file in tmp_path.iterdir()] in ([], ["table.npz"])


def test_range_counts_only_the_steps_inside() -> None:
    model = SiliconModel(silicon_table())
    rows = step_log(
        (10, 0, 0, 0, 8, 8 * 495),  # contexts 495..504 of at most 500: six inside
        (10, 0, 0, 0, 9, 9 * 30),  # next measured batch is 64: contexts up to 50
        (1, 1, 512, 0, 0, 0),
        (1, 2, 220, 0, 0, 0),  # 110 new tokens each, 100 measured for two prompts
        (1, 1, 400, 2000, 0, 0),  # longer prefix than the table
        (1, 1, 500, 0, 20, 200),  # 520 tokens in all
        (5, 0, 0, 0, 65, 650),  # larger batch
    )
    assert model.steps_in_range(rows).tolist() == [6, 10, 1, 0, 0, 0, 0]


def test_beyond_the_table_times_keep_growing() -> None:
    model = SiliconModel(silicon_table())
    assert (
        model.step_ms(StepShape.of_prompts(1, 5000))
        > model.step_ms(StepShape.of_prompts(1, 1000))
        > 0
    )
    assert model.step_ms(StepShape.of_decodes(4, 4 * 90_000)) > model.step_ms(
        StepShape.of_decodes(4, 4 * 2000)
    )
    assert model.step_ms(StepShape.of_decodes(200, 200 * 50)) > 0
