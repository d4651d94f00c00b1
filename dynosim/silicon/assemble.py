"""From an engine's kernels to its `SiliconTable`: times held against the roofline, and summed."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynosim.records import FloatArray
from dynosim.silicon.extraction import (
    COUNTS,
    REFERENCE_DECODE,
    REFERENCE_PREFILL_TOKENS,
    Extraction,
    TimedKernel,
    grid,
)
from dynosim.silicon.guard import HeldTimes, Judged, hold
from dynosim.silicon.measured_range import measured_decode_range, measured_prefill_range
from dynosim.silicon.missing_operations import missing_operations
from dynosim.silicon.operations import collective_of, sources_of
from dynosim.silicon.table_versions import TableChoice
from dynosim.timing.architecture import model_shape
from dynosim.timing.operation_bounds import (
    KernelBounds,
    Operation,
    decode_bounds,
    prefill_bounds,
    token_bounds,
)
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.silicon_table import SiliconTable

if TYPE_CHECKING:
    from dynosim.silicon.extract import SiliconQuery

Operations = tuple[list[Operation], list[Operation]]
_COMMON = ("_moe", "_moe_pre_dispatch", "_moe_post_dispatch")
"""How the library names what computes experts, or moves tokens between ranks for it."""
_REACHED = 0.8
"""Share of the roofline that products reach, where only that is known of them."""
_PREFILL_SURFACE, _DECODE_SURFACE = "prefill attention", "decode attention"


def assemble(
    extraction: Extraction,
    query: SiliconQuery,
    operations: Operations | None,
    choice: TableChoice,
    *,
    with_others: bool,
) -> SiliconTable:
    """The table of one engine; its `meta` say of which versions, how exact, what was refused."""
    raw = _Raw(extraction, query)
    exactness = extraction.errors_of(raw.table(raw.times, query, choice, {}))
    judged = raw.judged(operations, query.sheet)
    findings = [one.finding for one in judged.values() if one.finding is not None]
    times = raw.times
    if not query.trust_tables:
        times = times | {key: one.times_ms for key, one in judged.items()}
    left_out = _left_out(query, operations)
    times = times | raw.estimated(left_out, query.sheet)
    refused = {} if query.trust_tables else {key: one.refused for key, one in judged.items()}
    everything = [] if operations is None else [*operations[0], *operations[1]]
    collectives = [] if operations is None else [collective_of(one) for one in operations[0]]
    meta = {
        **raw.measured_shares(refused),
        "max_context": query.max_context,
        "sources": sources_of(everything, choice.versions),
        "other_engines": with_others,
        "guard": findings,
        "left_out": [one.name for one in left_out],
        "experts": _common_part(times, query),
        "is_guarded": bool(judged),
        "collectives": [asdict(one) for one in collectives if one is not None and one.ranks > 1],
    }
    table = raw.table(times, query, choice, meta | exactness)
    return replace(table, collective_ms=raw.collective_ms(operations, query.max_tokens))


class _Raw:
    """Times as the library has them, by (phase, operation)."""

    def __init__(self, extraction: Extraction, query: SiliconQuery) -> None:
        self.extraction = extraction
        self.new = grid(1, query.max_tokens)
        self.prefix = np.r_[0.0, grid(16, query.max_context)]
        self.batches, self.contexts = grid(1, query.max_batch), grid(1, query.max_context)
        prefill = extraction.prefill_flat(query.max_tokens)
        decode = extraction.decode_flat_times(query.max_batch)
        self.times: dict[tuple[str, str], FloatArray] = {
            **{("prefill", name): times for name, times in prefill.items()},
            **{("decode", name): times for name, times in decode.items()},
            ("surface", _PREFILL_SURFACE): extraction.prefill_attention(self.new, self.prefix),
            ("surface", _DECODE_SURFACE): extraction.decode_attention(self.batches, self.contexts),
        }

    def flat(self, phase: str, times: dict[tuple[str, str], FloatArray], size: int) -> FloatArray:
        """The sum of a phase's operations at 0 to `size` tokens."""
        total = np.zeros(size + 1)
        for (kind, _), values in times.items():
            if kind == phase:
                total[1:] += values
        return total

    def table(
        self,
        times: dict[tuple[str, str], FloatArray],
        query: SiliconQuery,
        choice: TableChoice,
        meta: dict[str, Any],
    ) -> SiliconTable:
        linear = self.flat("prefill", times, query.max_tokens)
        head = self.flat("decode", times, query.max_batch) - linear[: query.max_batch + 1]
        decode, prefill = (
            measured(
                query.system,
                query.backend,
                kv_heads=query.kv_heads_per_rank,
                is_latent=query.is_latent_attention,
                versions=choice.versions,
            )
            for measured in (measured_decode_range, measured_prefill_range)
        )
        return SiliconTable(
            linear_ms=linear,
            head_ms=head,
            collective_ms=np.zeros(query.max_tokens + 1),
            counts=np.array(COUNTS, np.float64),
            new_tokens=self.new,
            prefix_tokens=self.prefix,
            prefill_ms=times["surface", _PREFILL_SURFACE].astype(np.float32),
            batches=self.batches,
            contexts=self.contexts,
            decode_ms=times["surface", _DECODE_SURFACE].astype(np.float32),
            measured_batches=decode[0],
            measured_contexts=decode[1],
            measured_counts=prefill[0],
            measured_new_tokens=prefill[1],
            meta=meta,
        )

    def estimated(
        self, operations: list[Operation], sheet: HardwareSheet | None
    ) -> dict[tuple[str, str], FloatArray]:
        """Times of operations that the library does not know of, for both phases: shared experts,
        which run beside the others on a stream of their own and so have no launch to wait for."""
        times: dict[tuple[str, str], FloatArray] = {}
        for phase in ("prefill", "decode"):
            size = max(len(values) for (kind, _), values in self.times.items() if kind == phase)
            for one in operations:
                if sheet is None:
                    continue
                bounds = token_bounds(one, np.arange(1.0, size + 1.0), sheet)
                if bounds is not None:
                    times[phase, one.name] = bounds.floor_ms / _REACHED
        return times

    def collective_ms(self, operations: Operations | None, max_tokens: int) -> FloatArray:
        """The part of `linear_ms` that is all-reduces."""
        total = np.zeros(max_tokens + 1)
        for name in {one.name for one in (operations or ([], []))[0] if collective_of(one)}:
            total[1:] += self.times.get(("prefill", name), 0.0)
        return total

    def judged(
        self, operations: Operations | None, sheet: HardwareSheet | None
    ) -> dict[tuple[str, str], Judged]:
        """What the guard says of each operation that a roofline is known of."""
        if operations is None or sheet is None:
            return {}
        held = self._held(operations, sheet)
        return dict(zip(held, hold(list(held.values())), strict=True))

    def _held(
        self, operations: Operations, sheet: HardwareSheet
    ) -> dict[tuple[str, str], HeldTimes]:
        held: dict[tuple[str, str], HeldTimes] = {}
        for phase, of_phase in zip(("prefill", "decode"), operations, strict=True):
            for (kind, name), times in self.times.items():
                if kind != phase:
                    continue
                same = [one for one in of_phase if one.name == name]
                sizes = np.arange(1.0, len(times) + 1.0)
                is_head = phase == "prefill" and "logits" in name  # of one token per prompt
                tokens = np.ones_like(sizes) if is_head else sizes
                bounds = _sum([token_bounds(one, tokens, sheet) for one in same])
                if bounds is not None and same[0].family is not None:
                    nodes = np.isin(sizes, grid(1, len(times)))
                    held[phase, name] = HeldTimes(name, same[0].family, times, bounds, sizes, nodes)
        held |= self._surfaces(operations, sheet)
        return held

    def _surfaces(
        self, operations: Operations, sheet: HardwareSheet
    ) -> dict[tuple[str, str], HeldTimes]:
        context = [operations[0][i] for i in self.extraction.shaped]
        generation = [operations[1][i] for i in self.extraction.decode_shaped]
        counts = np.array(COUNTS, np.float64)[:, None, None]
        new, prefix = self.new[None, :, None], self.prefix[None, None, :]
        batches, contexts = self.batches[:, None], self.contexts[None, :]
        prefill = _sum([prefill_bounds(one, counts, new, prefix, sheet) for one in context])
        decode = _sum([decode_bounds(one, batches, contexts, sheet) for one in generation])
        held: dict[tuple[str, str], HeldTimes] = {}
        for name, bounds, sizes in (
            (_PREFILL_SURFACE, prefill, counts * new + 0 * prefix),
            (_DECODE_SURFACE, decode, batches * contexts),
        ):
            if bounds is not None:
                times = self.times["surface", name]
                everywhere = np.ones(times.shape, np.bool_)
                held["surface", name] = HeldTimes(name, name, times, bounds, sizes, everywhere)
        return held

    def measured_shares(
        self, refused: dict[tuple[str, str], NDArray[np.bool_]]
    ) -> dict[str, float]:
        """Share of the reference steps' time in kernels that were measured and not refused."""
        prefill, decode = self.extraction.reference_steps()
        batch, context = REFERENCE_DECODE
        at_prefill = (0, _position(self.new, REFERENCE_PREFILL_TOKENS), 0)
        at_decode = (_position(self.batches, batch), _position(self.contexts, context))
        surfaces = {
            "prefill": _at(refused.get(("surface", _PREFILL_SURFACE)), at_prefill),
            "decode": _at(refused.get(("surface", _DECODE_SURFACE)), at_decode),
        }

        def is_refused(phase: str, name: str, size: int) -> bool:
            if (phase, name) not in self.times:
                return surfaces[phase]
            return _at(refused.get((phase, name)), (size - 1,))

        return {
            "prefill_measured_share": _share(
                prefill, lambda name: is_refused("prefill", name, REFERENCE_PREFILL_TOKENS)
            ),
            "decode_measured_share": _share(decode, lambda name: is_refused("decode", name, batch)),
        }


def _common_part(
    times: dict[tuple[str, str], FloatArray], query: SiliconQuery
) -> tuple[list[float], list[float]] | None:
    """Tokens of a rank, and how long experts take with what gathers and scatters tokens.

    None where there is one rank. The library names these operations alike for all models. Those of
    a step of prompts are taken; decode steps have tables of their own, close to these.
    """
    if "attention_dp_size" not in query.options:
        return None
    tokens = grid(1, query.max_tokens).astype(int)
    total = np.zeros(len(tokens))
    for (phase, name), values in times.items():
        if phase == "prefill" and name.endswith(_COMMON):
            total += values[tokens - 1]
    return tokens.astype(float).tolist(), total.tolist()


def _left_out(query: SiliconQuery, operations: Operations | None) -> list[Operation]:
    """What the model has and the library's steps lack."""
    experts = [one for one in (operations or ([], []))[1] if one.kind == "Moe"]
    if operations is None or not experts:
        return []
    return missing_operations(
        model_shape(query.model),
        operations[1],
        tensor_parallel=query.tensor_parallel,
        quant_mode=experts[0].fields["quant_mode"],
    )


def _sum(bounds: list[KernelBounds | None]) -> KernelBounds | None:
    """Of all of them; None where there are none or one is not known."""
    known = [one for one in bounds if one is not None]
    if not known or len(known) < len(bounds):
        return None
    return sum(known[1:], known[0])


def _position(axis: FloatArray, value: float) -> int:
    return int(np.searchsorted(axis, value))


def _at(refused: NDArray[np.bool_] | None, index: tuple[int, ...]) -> bool:
    """Whether a time is refused; beyond the table what is at its end."""
    if refused is None:
        return False
    inside = tuple(min(i, size - 1) for i, size in zip(index, refused.shape, strict=True))
    return bool(refused[inside])


def _share(operations: list[TimedKernel], is_refused: Any) -> float:
    total = sum(one.ms for one in operations)
    known = sum(one.ms for one in operations if one.is_measured and not is_refused(one.name))
    return known / total if total > 0 else 0.0
