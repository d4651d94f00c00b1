"""What is believed before a log is looked at: curves from step times, and models nobody knows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.fit import prior as prior_module
from dynosim.fit.deployment import deployment_of
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import PROMPT_OVERHEAD_MS, prior_of
from dynosim.timing.fitted import FittedModel
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


class _PromptsCostMore(LinearModel):
    """A step with any prompt takes 5 ms more, as launching its kernels may."""

    def step_ms(self, step: StepShape) -> float:
        return super().step_ms(step) + 5.0 * (step.prefill_tokens > 0)


def _log(**kwargs: Any) -> Measurements:
    count = 40
    return Measurements(
        source="log",
        setup={"engine_kwargs": {"max_num_seqs": 64, "max_num_batched_tokens": 1024, **kwargs}},
        clock="engine",
        arrival_ms=np.arange(count) * 100.0,
        input_tokens=np.full(count, 300),
        output_tokens=np.full(count, 50),
        ttft_ms=np.full(count, 40.0),
        decode_ms=np.full(count, 490.0),
        block_tokens=0,
        hashes=((),) * count,
    )


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Callable[[StepTimeModel], None]:
    def use(timing: StepTimeModel) -> None:
        monkeypatch.setattr(prior_module, "device_timing", lambda _: timing)
        monkeypatch.setattr(prior_module, "table_timing", lambda *_: timing)

    return use


def test_decode_steps_do_not_pay_for_prompts(tables: Callable[[StepTimeModel], None]) -> None:
    truth = _PromptsCostMore(
        base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.05, per_context_token_ms=1e-4
    )
    tables(truth)
    log = _log()
    prior = prior_of(deployment_of(log.setup), log)
    parameters = prior.fit.parameters
    assert parameters.prompt_step_ms == pytest.approx(5.0 + PROMPT_OVERHEAD_MS, abs=0.1)
    host_ms = parameters.overhead_ms + 16 * parameters.per_decode_ms
    step_ms = FittedModel(prior.fit).step_ms(StepShape.of_decodes(16, 16 * 500)) - host_ms
    assert step_ms == pytest.approx(truth.step_ms(StepShape.of_decodes(16, 16 * 500)), rel=0.01)
    host_ms = parameters.overhead_ms + PROMPT_OVERHEAD_MS
    prompt_ms = FittedModel(prior.fit).step_ms(StepShape.of_prompts(1, 700)) - host_ms
    assert prompt_ms == pytest.approx(truth.step_ms(StepShape.of_prompts(1, 700)), rel=0.01)


def test_a_model_that_only_the_set_up_names_may_be_unknown() -> None:
    log = _log(model="acme/Acme-9B")
    prior = prior_of(deployment_of(log.setup, hardware="l4"), log)
    assert prior.source == "the log's own extremes"
    assert "acme/Acme-9B" in prior.notes[0]


def test_a_model_or_card_that_the_user_mistypes_is_refused() -> None:
    log = _log(model="Qwen/Qwen3-8B")
    with pytest.raises(ConfigError, match="did you mean"):
        prior_of(deployment_of(log.setup, hardware="l4", model="Qwen/Qwen3-8C"), log)
    with pytest.raises(ConfigError, match="h20O"):
        prior_of(deployment_of(log.setup, hardware="h20O"), log)
