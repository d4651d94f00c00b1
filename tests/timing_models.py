"""One step-time model of each kind, small enough for laws to reach all their bends."""

import numpy as np
from timing_support import silicon_table

from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import ModelEntry, model_shape
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters, MeasuredRange
from dynosim.timing.formulas import FixedModel, LinearModel, PolynomialModel
from dynosim.timing.host import HostTime
from dynosim.timing.mixed import FLASH_ATTENTION_2
from dynosim.timing.model import StepTimeModel
from dynosim.timing.profile import DynamoProfileModel, PrefillCurve, ProfileModel
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.step import StepShape


def _roofline(host: HostTime | None = None) -> RooflineModel:
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1024,
        "vocab_size": 1000,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "mlp_only_layers": [0],
    }
    shape = model_shape(ModelEntry("tiny", config, None, "tiny/config.json", False))
    return RooflineModel(
        shape,
        hardware_sheet("l4"),
        tensor_parallel=2,
        host=host,
        kernel=FLASH_ATTENTION_2,
        graph_sizes=(1, 8, 64),
    )


def _profiles() -> list[StepTimeModel]:
    curve = PrefillCurve([16.0, 512.0, 4096.0], [3.0, 10.0, 90.0])
    batches = np.array([1.0, 4.0, 16.0])
    contexts = np.array([8.0, 64.0, 600.0])
    own = np.array([[2.0, 2.5, 6.0], [2.4, 3.5, 4.0], [4.0, 3.0, 9.0]])
    tokens = np.array([32.0, 300.0, 5000.0])
    return [
        ProfileModel(curve, batches, contexts, own, name="own"),
        DynamoProfileModel(curve, tokens, contexts, own, name="dynamo"),
    ]


def _fitted() -> FittedModel:
    parameters = FittedParameters(
        overhead_ms=1.0,
        weights_ms=4.0,
        per_token_ms=0.2,
        per_decode_ms=0.01,
        per_context_token_ms=3e-4,
        per_pair_ms=1e-6,
    )
    curve = ((1, 0.6), (12, 1.2), (64, 1.0))
    measured = MeasuredRange(num_decodes=40, mean_context=700.0)
    return FittedModel(
        Fit(
            parameters=parameters,
            context_curve=curve,
            graph_sizes=(1, 8, 64),
            measured=measured,
        )
    )


class SquareRootModel(StepTimeModel):
    """Knows single steps only: all else is what every model inherits."""

    decode_is_monotone = True

    def step_ms(self, step: StepShape) -> float:
        contexts = step.prefix_tokens + step.decode_context_tokens
        work = 3 * step.prefill_tokens + step.num_decodes + 0.1 * contexts
        return float(work**0.5)


ASYNC_HOST = HostTime(base_ms=9.0, per_sequence_ms=0.05, per_prompt_ms=0.1, exposed_share=0.3)
"""Passed by the device in the middle of the table."""

MODELS: list[StepTimeModel] = [
    FixedModel(50.0, 7.0),
    LinearModel(base_ms=5, per_prefill_token_ms=0.1, per_decode_ms=0.05, per_context_token_ms=1e-4),
    PolynomialModel(4096),
    SiliconModel(silicon_table(), host=HostTime(base_ms=0.3)),
    SiliconModel(silicon_table(), host=ASYNC_HOST, mixed_context_ms=1e-2, graph_sizes=(1, 4, 48)),
    ScaledModel(SiliconModel(silicon_table(1)), 1.7),
    _roofline(),
    _roofline(HostTime(base_ms=0.6, per_sequence_ms=0.004, exposed_share=0.25)),
    _fitted(),
    *_profiles(),
    SquareRootModel(),
]
IDS = [f"{i}-{type(model).__name__}" for i, model in enumerate(MODELS)]
