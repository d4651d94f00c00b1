"""Looks up the step times of a `SiliconTable`: the hot path of measured timing.

A step with several prompts is one batched attention launch of their mean lengths, a decode batch
that of its mean context, as in aiconfigurator itself. Beyond the table times are extrapolated in
line and the steps count as out of range. What no table of kernels holds comes on top: padding to
CUDA graphs, decodes that share a kernel with prompts (see `mixed`), sampling (see `sampler`), the
host (see `host`).
"""

from bisect import bisect_right

import numpy as np
from mypy_extensions import mypyc_attr

from dynosim.records import FloatArray, IntArray, StepLog
from dynosim.timing.graphs import padded_tokens
from dynosim.timing.host import HostTime
from dynosim.timing.model import MEASURED, StepTimeModel, contexts_below
from dynosim.timing.rows import (
    ContextRow,
    decode_ms_array,
    extended_row,
    interpolate_rows,
    raised_row,
    steps_to_row_knot,
)
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape


@mypyc_attr(allow_interpreted_subclasses=True)
class SiliconModel(StepTimeModel):
    """Looks steps up in a `SiliconTable`. About 1 us for a decode run, 2 to 3 us for a prefill."""

    def __init__(
        self,
        table: SiliconTable,
        *,
        host: HostTime | None = None,
        mixed_context_ms: float = 0.0,
        graph_sizes: tuple[int, ...] = (),
        per_sequence_ms: float = 0.0,
        source: str = MEASURED,
        description: str = "",
        notes: tuple[str, ...] = (),
        alternatives: "tuple[SiliconModel, ...]" = (),
    ) -> None:
        self.source = source
        self.description = description
        self.notes = notes
        self.alternatives = alternatives  # by other engine versions' measurements, for intervals
        self.decode_is_monotone = bool(np.all(np.diff(table.decode_ms, axis=1) >= 0))
        self._table = table
        self._host = host or HostTime()
        self._mixed_context_ms = mixed_context_ms
        self._graph_sizes = graph_sizes
        self._per_sequence_ms = per_sequence_ms
        self._linear: list[float] = table.linear_ms.tolist()
        self._head: list[float] = table.head_ms.tolist()
        self._max_tokens = table.max_tokens
        self._linear_slope = _tail_slope(table.linear_ms)
        self._counts: list[float] = table.counts.tolist()
        self._new: list[float] = table.new_tokens.tolist()
        self._prefix: list[float] = table.prefix_tokens.tolist()
        self._batches: list[float] = table.batches.tolist()
        self._contexts: list[float] = table.contexts.tolist()
        self._attention_rows: dict[int, ContextRow] = {}
        self._decode_rows: dict[int, ContextRow] = {}
        self._prefill_rows: dict[int, list[list[float]]] = {}

    def step_ms(self, step: StepShape) -> float:
        prefill_tokens, num_decodes = step.prefill_tokens, step.num_decodes
        if prefill_tokens <= 0:
            if num_decodes <= 0:
                return 0.0
            row = self._decode_rows.get(num_decodes) or self._decode_row(num_decodes)
            return row.at(step.decode_context_tokens / num_decodes)
        total = self._linear_ms(prefill_tokens + num_decodes) + self._prefill_attention_ms(step)
        if num_decodes > 0:
            row = self._attention_rows.get(num_decodes) or self._attention_row(num_decodes)
            decoding = row.at(step.decode_context_tokens / num_decodes)
            least = step.decode_context_tokens * self._mixed_context_ms
            total += decoding if decoding > least else least
        total += (step.num_prefills + num_decodes) * self._per_sequence_ms
        return self._host.step_ms(total, step.num_prefills, num_decodes)

    def decode_run_ms(self, num_decodes: int, decode_context_tokens: int, num_steps: int) -> float:
        if num_decodes <= 0:
            return 0.0
        row = self._decode_rows.get(num_decodes) or self._decode_row(num_decodes)
        return row.run(decode_context_tokens / num_decodes, num_steps)

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        return decode_ms_array(self._decode_row, num_decodes, decode_context_tokens)

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return steps_to_row_knot(self._decode_row, num_decodes, decode_context_tokens, num_steps)

    def with_host(self, host: HostTime) -> "SiliconModel":
        """The same engine on another host."""
        other = SiliconModel(
            self._table,
            host=host,
            mixed_context_ms=self._mixed_context_ms,
            graph_sizes=self._graph_sizes,
            per_sequence_ms=self._per_sequence_ms,
            source=self.source,
            description=self.description,
            notes=self.notes,
        )
        other.ingress_ms, other.egress_ms = self.ingress_ms, self.egress_ms
        return other

    @property
    def host(self) -> HostTime:
        """What the host adds."""
        return self._host

    def _linear_ms(self, tokens: int) -> float:
        tokens = padded_tokens(tokens, self._graph_sizes)
        if tokens <= self._max_tokens:
            return self._linear[tokens]
        return self._linear[-1] + self._linear_slope * (tokens - self._max_tokens)

    def _prefill_attention_ms(self, step: StepShape) -> float:
        num_prefills = step.num_prefills
        new_tokens = step.prefill_tokens / num_prefills
        cached_tokens = step.prefix_tokens / num_prefills
        new, prefix = self._new, self._prefix
        i = bisect_right(new, new_tokens, 1, len(new) - 1) - 1
        j = bisect_right(prefix, cached_tokens, 1, len(prefix) - 1) - 1
        rows = self._prefill_rows.get(num_prefills) or self._prefill_rows_of(num_prefills)
        low, high = rows[i], rows[i + 1]
        v = (cached_tokens - prefix[j]) / (prefix[j + 1] - prefix[j])
        at_low = low[j] + v * (low[j + 1] - low[j])
        at_high = high[j] + v * (high[j + 1] - high[j])
        return at_low + (new_tokens - new[i]) / (new[i + 1] - new[i]) * (at_high - at_low)

    def _prefill_rows_of(self, num_prefills: int) -> list[list[float]]:
        """Attention of so many prompts at each node of new tokens, over the cached tokens."""
        i = bisect_right(self._counts, num_prefills, 1, len(self._counts) - 1) - 1
        surface = self._table.prefill_ms
        rows = [
            interpolate_rows(self._counts, i, num_prefills, low, high)
            for low, high in zip(surface[i].tolist(), surface[i + 1].tolist(), strict=True)
        ]
        self._prefill_rows[num_prefills] = rows
        return rows

    def _attention_row(self, num_decodes: int) -> ContextRow:
        row = extended_row(
            self._contexts,
            self._attention_values(num_decodes),
            monotone=self.decode_is_monotone,
        )
        self._attention_rows[num_decodes] = row
        return row

    def _decode_row(self, num_decodes: int) -> ContextRow:
        """Everything a decode step costs, over the mean context."""
        row = self._decode_rows.get(num_decodes)
        if row is None:
            padded = padded_tokens(num_decodes, self._graph_sizes)
            head = self._head[min(padded, len(self._head) - 1)]
            rest = self._linear_ms(num_decodes) + head + num_decodes * self._per_sequence_ms
            values = [value + rest for value in self._attention_values(num_decodes)]
            device = extended_row(self._contexts, values, monotone=self.decode_is_monotone)
            host = self._host
            row = raised_row(
                device, host.hidden_ms(0, num_decodes), host.exposed_ms(0, num_decodes)
            )
            self._decode_rows[num_decodes] = row
        return row

    def _attention_values(self, num_decodes: int) -> list[float]:
        i = bisect_right(self._batches, num_decodes, 1, len(self._batches) - 1) - 1
        surface = self._table.decode_ms
        return interpolate_rows(
            self._batches, i, num_decodes, surface[i].tolist(), surface[i + 1].tolist()
        )

    def steps_in_range(self, steps: StepLog) -> IntArray:
        """Steps inside both the table and what its attention kernels were measured on."""
        table = self._table
        longest = _limit(
            steps.num_decodes, table.measured_batches, table.measured_contexts, table.contexts[-1]
        )
        inside = contexts_below(steps, np.minimum(longest, table.contexts[-1]))
        prompts = np.maximum(steps.num_prefills, 1)
        most_new = _limit(
            steps.num_prefills,
            table.measured_counts,
            table.measured_new_tokens,
            table.new_tokens[-1],
        )
        known = (
            (steps.num_decodes <= table.max_batch)
            & (steps.prefill_tokens + steps.num_decodes <= table.max_tokens)
            & (steps.prefill_tokens / prompts <= most_new)
            & (steps.prefix_tokens / prompts <= table.prefix_tokens[-1])
        )
        return np.where(known, inside, 0).astype(np.int64)


def _tail_slope(values: FloatArray) -> float:
    """Milliseconds per token over the last quarter: past the end the jumps average out."""
    start = len(values) * 3 // 4
    return max(0.0, float(values[-1] - values[start]) / (len(values) - 1 - start))


def _limit(
    batch: IntArray, measured: FloatArray, longest: FloatArray, otherwise: float
) -> FloatArray:
    """Longest length measured at the next larger batch size; 0 beyond the largest."""
    if len(measured) == 0:
        return np.full(len(batch), otherwise)
    index = np.searchsorted(measured, batch, side="left")
    return np.append(longest, 0.0)[index]
