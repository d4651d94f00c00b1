"""`workload.sampling`: what it means, what obeys it, and what cannot."""

import pytest

from dynosim.build.engine import prepare
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.timing.step import StepShape

GPU = {"hardware": "h100_sxm", "timing": {"kind": "roofline"}}
BATCH = 32


def config(
    sampling: str, *, model: str = "Qwen/Qwen3-8B", version: str = "0.15.1", **others: object
) -> RunConfig:
    data = {
        "model": model,
        **GPU,
        "engine": {"version": version, "max_model_len": 4096},
        "workload": {"trace": "t.jsonl", "sampling": sampling},
    }
    return RunConfig.of(data | others)


def decode_ms(run: RunConfig) -> float:
    return prepare(run).timing.step_ms(StepShape.of_decodes(BATCH, BATCH * 1000))


def test_a_step_takes_longer_the_more_is_done_with_its_logits() -> None:
    greedy, random, truncated = (decode_ms(config(s)) for s in ("greedy", "random", "truncated"))
    assert greedy < random < truncated
    # 460 bytes for each of 151,936 logits of 32 sequences, at 3,350 GB/s
    assert truncated - random == pytest.approx(BATCH * 151_936 * 460 / 3350e6, rel=0.01)


def test_newer_versions_strike_out_faster() -> None:
    old, new = (
        decode_ms(config("truncated", version=version))
        - decode_ms(config("random", version=version))
        for version in ("0.15.1", "0.24.0")
    )
    assert 0 < new < old / 10


def test_the_model_is_asked_by_its_name() -> None:
    assert config("model").sampling == "truncated"
    assert config("model", model="Qwen/Qwen3-8B-Base").sampling == "random"
    assert config("greedy").sampling == "greedy"


def test_prompts_are_sampled_too() -> None:
    plain, cut = (
        prepare(config(how)).timing.step_ms(StepShape.of_prompts(4, 400))
        for how in ("greedy", "truncated")
    )
    assert cut > plain


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timing": {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1}}, "does not know"),
        ({"model": None, "timing": {"kind": "linear"}, "hardware": None}, "does not know"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(changes: dict[str, object], words: str) -> None:
    data = {
        "model": "Qwen/Qwen3-8B",
        **GPU,
        "engine": {"num_gpu_blocks": 1000},
        "workload": {"trace": "t.jsonl", "sampling": "truncated"},
    }
    with pytest.raises(ConfigError, match=r"workload\.sampling") as caught:
        run_config_from_dict(data | changes)
    assert words in str(caught.value)


def test_reports_say_how_tokens_are_chosen() -> None:
    assert "truncated sampling" in prepare(config("truncated")).timing.description
    assert "sampling" not in prepare(config("greedy")).timing.description
