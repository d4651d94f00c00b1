"""The roofline of a model with experts that are spread over the ranks of a worker.

vLLM spreads experts over all tensor x data parallel GPUs of a worker: a part of every expert on
each, or whole experts with expert parallelism. Its default way on one node
(`allgather_reducescatter`) gathers the hidden states of all ranks' tokens, with their router
logits, before the experts of a layer, and adds up and scatters the results after them. A rank so
receives the tokens of the others, and gives away as much of the results.

Whole experts are not asked for evenly: with tokens choosing at random the slowest GPU of a layer
has more of them than the mean, by the spread of the sample. Real routers are more uneven than that;
nothing is known of them here.
"""

from math import sqrt
from statistics import NormalDist
from typing import Any

from dynosim.timing.architecture import ModelShape
from dynosim.timing.experts import ExpertTimes
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.roofline_products import expert_kernels_ms, experts_ms
from dynosim.timing.sheets import HardwareSheet

_EXCHANGE_US = 7.8
_EXCHANGE_US_PER_RANK = 1.1
_EXCHANGE_LINK_SHARE = 0.51
"""Time of one gather or scatter: a start, more of it for each further rank, and the rate reached.

Fitted to aiconfigurator-core 0.12's measured dispatch and combine of vLLM on A100, H100, H200 and
B200 SXM with 2, 4 and 8 ranks of 1 to 8,192 tokens: mean error 22 %, 60 % at worst (medium sizes
of H100 are slower than the tables, small ones of A100 and large ones of B200 faster). Left out one
by one, each of the four is predicted with a mean error of 20 to 30 %.
"""


class RankedRoofline(RooflineModel):
    """`data_parallel` ranks of `tensor_parallel` GPUs that all do the same; `step_ms` is one's."""

    def __init__(
        self,
        shape: ModelShape,
        sheet: HardwareSheet,
        *,
        data_parallel: int,
        expert_parallel: bool,
        **options: Any,
    ) -> None:
        """`options` are those of `RooflineModel`. Raises: ConfigError, as it does."""
        super().__init__(shape, sheet, **options)
        self._data_parallel = data_parallel
        self._expert_gpus = self._ranks * data_parallel
        self._has_whole_experts = expert_parallel
        self._slowest = _slowest_of(self._expert_gpus) if expert_parallel else 0.0
        self._exchange_bytes_per_ms = (
            sheet.link_gb_per_s_of(self._expert_gpus) * 1e6 * _EXCHANGE_LINK_SHARE
        )
        self.experts = _RooflineExperts(self) if data_parallel > 1 else None
        spread = "whole experts" if expert_parallel else "a part of each expert"
        self.description += f", data_parallel {data_parallel} ({spread} on each GPU)"
        if expert_parallel:
            self.notes += ("experts are taken to be chosen at random; real routers are less even",)

    def _experts_ms(self, tokens: float) -> float:
        """Experts and exchange of a step in which every rank has so many tokens."""
        per_layer = self._computing_ms(tokens * self._data_parallel)
        if self._data_parallel > 1:
            per_layer += self._exchange_ms(tokens)
        return self._shape.expert_layers * per_layer

    def _computing_ms(self, tokens: float) -> float:
        """The experts of a layer on the slowest GPU, for the tokens of all ranks."""
        shape, gpus, number_format = self._shape, self._expert_gpus, self._formats.experts
        if not self._has_whole_experts:
            return experts_ms(shape, tokens, gpus, number_format, self._sheet, self._factors)
        share = shape.experts_per_token / shape.experts
        touched: float = 1 - (1 - share) ** tokens
        used = tokens * shape.experts_per_token / gpus
        read = touched * shape.experts / gpus
        spread = used * (1 - 1 / gpus) * (shape.experts - shape.experts_per_token)
        used += self._slowest * sqrt(spread / max(shape.experts - 1, 1))
        read += self._slowest * sqrt(read * (1 - touched))
        used = min(used, tokens * shape.experts_per_token)
        read = min(read, max(shape.experts / gpus, 1.0))
        return expert_kernels_ms(
            shape,
            tokens,
            used,
            read,
            shape.expert_intermediate,
            number_format,
            self._sheet,
            self._factors,
        )

    def _exchange_ms(self, tokens: float) -> float:
        """Gather and scatter of a layer: 2 bytes for each hidden width, and for each expert."""
        shape, others = self._shape, self._data_parallel - 1
        start_us = _EXCHANGE_US + _EXCHANGE_US_PER_RANK * others
        moved = others * tokens * 2 * (2 * shape.hidden + shape.experts)
        return 2 * start_us / 1e3 + moved / self._exchange_bytes_per_ms


class _RooflineExperts(ExpertTimes):
    """The common part of a roofline's step; remembered, since steps repeat."""

    def __init__(self, model: RankedRoofline) -> None:
        self._model = model
        self._known: dict[float, float] = {}

    def ms(self, tokens_per_rank: float) -> float:
        found = self._known.get(tokens_per_rank)
        if found is None:
            found = self._known[tokens_per_rank] = self._model._experts_ms(tokens_per_rank)
        return found


def _slowest_of(number: int) -> float:
    """Expected largest of so many samples of the normal distribution, in standard deviations.

    Source: Blom's approximation of normal order statistics (1958).
    """
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25)) if number > 1 else 0.0
