"""What is believed before a log is looked at, constant by constant, by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dynosim.errors import ConfigError
from dynosim.fit import prior as prior_module
from dynosim.fit.deployment import Deployment, deployment_of
from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior, device_timing, prior_of, table_timing
from dynosim.timing.fitted import FACTOR_NAMES, FittedParameters
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape


def log(count: int = 40, *, clock: str = "engine", **columns: Any) -> Measurements:
    values: dict[str, Any] = {
        "arrival_ms": np.arange(count) * 100.0,
        "input_tokens": np.full(count, 300),
        "output_tokens": np.full(count, 51),
        "ttft_ms": np.full(count, 40.0),
        "decode_ms": np.full(count, 500.0),
    }
    return Measurements(
        source="log", setup={}, clock=clock,  # type: ignore[arg-type]
        block_tokens=0, hashes=((),) * count, **(values | columns),
    )  # fmt: skip


def deployed(hardware: str | None = "l4", **kwargs: Any) -> Deployment:
    limits = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, **kwargs}
    return deployment_of({"engine_kwargs": limits}, hardware=hardware)


class _Hosted(StepTimeModel):
    """A device whose host takes 0.8 ms of every step."""

    def __init__(self, device: StepTimeModel) -> None:
        self._device = device

    def step_ms(self, step: StepShape) -> float:
        return self._device.step_ms(step) + 0.8


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Callable[[StepTimeModel], None]:
    def use(timing: StepTimeModel) -> None:
        monkeypatch.setattr(prior_module, "device_timing", lambda _: timing)
        monkeypatch.setattr(prior_module, "table_timing", lambda *_: _Hosted(timing))

    return use


LINEAR = LinearModel(
    base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.06, per_context_token_ms=1e-4
)
PAIR_MS = 1e-4 / 1024  # a context token more for each of 1024 new tokens


def prompt_ms(tokens: int) -> float:
    """A step with one prompt less the pairs of its tokens."""
    return 8.0 + (0.05 + 1e-4) * tokens - PAIR_MS * tokens * (tokens + 1) / 2


def test_a_prior_of_tables_takes_slopes_and_curves_from_them(tables: Any) -> None:
    tables(LINEAR)
    prior = prior_of(deployed(), log())
    fit = prior.fit
    on_top_ms = prompt_ms(64) - (8.0 + 0.06 * 64)
    assert on_top_ms < 0
    expected = FittedParameters(
        overhead_ms=0.8,
        prompt_step_ms=1.0,  # prompts cost nothing on top here
        per_decode_ms=0.01,
        per_context_token_ms=1e-4,
        mixed_context_token_ms=0.0,  # and decodes nothing more beside them
        per_pair_ms=PAIR_MS,
    )
    for name in FittedParameters.__dataclass_fields__:
        found, wanted = getattr(fit.parameters, name), getattr(expected, name)
        assert found == pytest.approx(wanted, rel=1e-9), name
    curve = dict(fit.token_curve)
    assert list(curve)[:4] == [1, 2, 4, 8] and list(curve)[-2:] == [992, 1024]
    # Up to the largest decode batch steps that only decode, from there on steps of prompts, which
    # are never faster.
    for tokens in (1, 8, 64):
        assert curve[tokens] == pytest.approx(8.0 + 0.06 * tokens)
    assert curve[72] == pytest.approx(8.0 + 0.06 * 64)
    assert prompt_ms(72) < curve[72]
    for tokens in (504, 992, 1024):
        assert curve[tokens] == pytest.approx(prompt_ms(tokens))
    batches = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64)
    assert dict(fit.context_curve) == pytest.approx(dict.fromkeys(batches, 1.0))
    assert fit.graph_sizes == (1, 2, 4, *range(8, 129, 8))
    assert fit.knee == 4.0
    assert prior.source == LINEAR.description


def test_spreads_of_a_prior_of_tables(tables: Any) -> None:
    tables(LINEAR)
    expected = {
        "overhead_ms": 1.6,
        "curve_scale": 0.15,
        **dict.fromkeys(FACTOR_NAMES, 0.05),
        "prompt_step_ms": 1.0,
        "per_decode_ms": 0.02,
        "per_context_token_ms": 0.2e-4,
        "mixed_context_token_ms": 0.4e-4,
        "per_pair_ms": 0.3 * PAIR_MS,
    }
    assert dict(prior_of(deployed(), log()).spread) == pytest.approx(expected)


def test_what_prompts_cost_on_top_is_no_part_of_the_curve(tables: Any) -> None:
    class Slow(LinearModel):
        def step_ms(self, step: StepShape) -> float:
            return super().step_ms(step) + 5 * (step.prefill_tokens > 0)

    tables(
        Slow(base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.06, per_context_token_ms=1e-4)
    )
    prior = prior_of(deployed(), log())
    on_top_ms = prompt_ms(64) + 5 - (8.0 + 0.06 * 64)
    assert prior.fit.parameters.prompt_step_ms == pytest.approx(1.0 + on_top_ms)
    assert prior.spread["prompt_step_ms"] == pytest.approx(1.0 + 0.5 * on_top_ms)
    assert dict(prior.fit.token_curve)[1024] == pytest.approx(prompt_ms(1024) + 5 - on_top_ms)


def test_kernels_that_are_slower_in_some_batches_bend_the_context_curve(tables: Any) -> None:
    class Bent(LinearModel):
        def step_ms(self, step: StepShape) -> float:
            extra = 1e-4 * step.decode_context_tokens if step.num_decodes == 8 else 0.0
            return super().step_ms(step) + extra

    tables(
        Bent(base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.06, per_context_token_ms=1e-4)
    )
    curve = dict(prior_of(deployed(), log()).fit.context_curve)
    assert curve[8] == pytest.approx(2.0)
    assert [curve[4], curve[64]] == pytest.approx([1.0, 1.0])


def test_decodes_that_share_a_kernel_with_prompts_start_as_slow_as_tables_say(tables: Any) -> None:
    class Shared(LinearModel):
        def step_ms(self, step: StepShape) -> float:
            extra = 3e-4 * step.decode_context_tokens if step.num_prefills else 0.0
            return super().step_ms(step) + extra

    tables(
        Shared(
            base_ms=8.0, per_prefill_token_ms=0.05, per_decode_ms=0.06, per_context_token_ms=1e-4
        )
    )
    prior = prior_of(deployed(), log())
    assert prior.fit.parameters.mixed_context_token_ms == pytest.approx(3e-4)
    assert prior.spread["mixed_context_token_ms"] == pytest.approx(0.4 * 3e-4)


@pytest.mark.parametrize("is_eager", [False, True])
def test_a_host_that_launches_every_kernel_is_slow(is_eager: bool) -> None:
    setup = {
        "vllm_version": "0.19.0",
        "engine_kwargs": {"enforce_eager": is_eager, "max_num_seqs": 64},
    }
    small = deployment_of(setup, model="Qwen/Qwen3-0.6B", hardware="rtx_4090")
    prior = prior_of(small, log())
    host_ms = prior.fit.parameters.overhead_ms
    least_ms, most_ms, surplus_ms = (1.5, 5.0, 5.0) if is_eager else (0.5, 1.5, 0.0)
    assert least_ms < host_ms < most_ms
    assert prior.spread["overhead_ms"] == 2 * host_ms + surplus_ms
    assert bool(prior.fit.graph_sizes) is not is_eager


def test_clients_see_a_way_in_that_engines_do_not(tables: Any) -> None:
    tables(LINEAR)
    first_ms = np.linspace(10.0, 88.0, 40)  # 5 % lie below 13.9 ms
    seen = prior_of(deployed(), log(clock="clients", ttft_ms=first_ms))
    assert seen.fit.parameters.ingress_ms == pytest.approx(0.2 * 13.9)
    assert seen.spread["ingress_ms"] == pytest.approx(0.5 * 13.9 + 0.001)
    unseen = prior_of(deployed(), log(ttft_ms=first_ms))
    assert unseen.fit.parameters.ingress_ms == 0.0
    assert "ingress_ms" not in unseen.spread


def test_notes_of_the_tables_are_the_priors(tables: Any) -> None:
    timing = replace_notes(LINEAR, ("made of cheese",))
    tables(timing)
    assert prior_of(deployed(), log()).notes == ("made of cheese",)


def replace_notes(timing: LinearModel, notes: tuple[str, ...]) -> LinearModel:
    copy = LinearModel(
        base_ms=timing.base_ms,
        per_prefill_token_ms=timing.per_prefill_token_ms,
        per_decode_ms=timing.per_decode_ms,
        per_context_token_ms=timing.per_context_token_ms,
    )
    copy.notes = notes
    return copy


def test_without_tables_a_log_tells_magnitudes() -> None:
    # Prompts of 100 to 890 tokens, 0.5 ms each and 10 ms on top; steps of 8 to 12 ms.
    inputs = 100 + 10 * np.arange(80)
    gaps_ms = np.linspace(8.0, 12.0, 80)
    measured = log(
        80,
        input_tokens=inputs,
        output_tokens=np.full(80, 51),
        ttft_ms=10.0 + 0.5 * inputs,
        decode_ms=50 * gaps_ms,
    )
    prior = prior_of(deployment_of({}), measured)
    step_ms = 8.0 + 0.05 * 4.0  # the fastest twentieth
    contexts = (100 + 890) / 2 + 51 / 2
    # The lower edge: in each of eight groups of ten the fastest tenth, at 9 tokens of 90.
    per_token_ms = 0.5
    expected = {
        "overhead_ms": 0.2 * step_ms,
        "weights_ms": 0.6 * step_ms,
        "per_token_ms": per_token_ms,
        "prompt_step_ms": 0.05 * step_ms,
        "per_decode_ms": 0.002 * step_ms,
        "per_context_token_ms": 0.004 * step_ms / contexts,
        "mixed_context_token_ms": 0.002 * step_ms / contexts,
        "per_pair_ms": 0.1 * per_token_ms / contexts,
    }
    found = {name: getattr(prior.fit.parameters, name) for name in expected}
    assert found == pytest.approx(expected)
    assert prior.fit.parameters.ingress_ms == 0.0
    spread = {**expected, **dict.fromkeys(FACTOR_NAMES, 0.1)}
    assert dict(prior.spread) == pytest.approx(spread)  # each may be off by as much as it is
    assert (prior.fit.token_curve, prior.fit.context_curve) == ((), ())
    assert prior.source == "the log's own extremes"
    assert prior.notes == ()


def test_prompts_of_one_length_tell_a_slope_by_their_fastest() -> None:
    prior = prior_of(deployment_of({}), log(ttft_ms=np.full(40, 60.0)))
    assert prior.fit.parameters.per_token_ms == pytest.approx(60.0 / 300)
    # Never less than a step spread over 2000 tokens.
    fast = prior_of(deployment_of({}), log(ttft_ms=np.full(40, 1e-3)))
    assert fast.fit.parameters.per_token_ms == pytest.approx(10.0 / 2000)


def test_a_log_of_single_tokens_takes_its_fastest_first_token_for_a_step() -> None:
    single = log(output_tokens=np.ones(40, np.int64), decode_ms=np.zeros(40))
    prior = prior_of(deployment_of({}), single)
    assert prior.fit.parameters.weights_ms == pytest.approx(0.6 * 40.0)


@pytest.mark.parametrize(("hardware", "knees"), [("cpu", [1.0]), (None, [1.0, 2.5])])
def test_knees_that_are_tried_without_tables(hardware: str | None, knees: list[float]) -> None:
    prior = prior_of(deployment_of({}, hardware=hardware), log())
    assert [one.fit.knee for one in prior.with_all_knees()] == knees


def test_a_prior_without_knees_keeps_its_own(tables: Any) -> None:
    tables(LINEAR)
    prior = prior_of(deployed(), log())
    assert [one.fit.knee for one in prior.with_all_knees()] == [4.0]
    other = replace(prior, fit=replace(prior.fit, knee=7.0))
    assert [one.fit.knee for one in other.with_all_knees()] == [7.0]
    assert isinstance(other, Prior) and other.spread == prior.spread


@pytest.mark.parametrize(
    ("model", "hardware"),
    [(None, "l4"), ("Qwen/Qwen3-8B", None), ("Qwen/Qwen3-8B", "cpu"), (None, None)],
)
def test_there_are_no_tables_without_a_model_and_a_gpu(
    model: str | None, hardware: str | None
) -> None:
    deployment = deployment_of({}, model=model, hardware=hardware)
    assert table_timing(deployment, "clients") is None
    assert device_timing(deployment) is None


def test_the_roofline_stands_in_for_tables_that_are_not_there() -> None:
    deployment = deployment_of({}, model="Qwen/Qwen3-8B", hardware="rtx_4090")
    device, seen = device_timing(deployment), table_timing(deployment, "clients")
    told = table_timing(deployment, "engine")
    assert device is not None and seen is not None and told is not None
    assert device.source == "estimated"
    step = StepShape(0, 0, 0, 4, 400)
    assert told.step_ms(step) == seen.step_ms(step) > device.step_ms(step)
    # Without a version the loop is the synchronous one, which hides nothing.
    assert seen.step_ms(step) - device.step_ms(step) == pytest.approx(1.6 + 4 * 0.01)
    assert (seen.ingress_ms, seen.egress_ms) == (5.0, 0.0)
    assert told.ingress_ms == told.egress_ms == device.ingress_ms == device.egress_ms == 0
    with pytest.raises(ConfigError, match="does not cover"):
        sparse = deployment_of({}, model="zai-org/GLM-5", hardware="rtx_4090")
        table_timing(sparse, "engine")
