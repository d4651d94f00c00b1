"""An engine whose step times are of no form that a fit knows, and the log that it would leave.

Kernels come from tables or the roofline of some model and hardware, each part bent by a factor.
On top lie what real engines show: host time that grows with the batch and in part hides behind the
device, steps padded to CUDA graphs, attention that jumps with the batch size, mixed steps that
overlap, noise of every step, pauses. Nothing of it is random between two runs: noise is a function
of the step's composition.
"""

import gzip
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.fit.replay import replay
from dynosim.records import FloatArray, Trace
from dynosim.timing.graphs import padded_tokens
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

_MIX = {
    "num_prefills": 0x9E3779B1,
    "prefill_tokens": 0x85EBCA77,
    "prefix_tokens": 0xC2B2AE3D,
    "num_decodes": 0x27D4EB2F,
    "decode_context_tokens": 0x165667B1,
}
"""What each number of a step is multiplied by to find its draw."""
_NUM_DRAWS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What an engine does beyond its tables; times in ms."""

    products: float = 1.0  # factor of all but attention
    attention: float = 1.0  # factor of decode attention
    host_ms: float = 2.0  # of every step
    host_per_decode_ms: float = 0.01
    host_per_prompt_ms: float = 0.3
    hides_host: bool = False  # a step takes the longer of host and device, not their sum
    bend: float = 0.0  # products of middling batches longer by so much, of small and large not
    bend_at: float = 32.0
    wave: int = 0  # sequences that attention serves at once: a part-full wave takes a whole one's
    overlap: float = 0.0  # share of the shorter of prompts and decode attention that is hidden
    noise: float = 0.02  # of the logarithm of a step's duration
    pauses: float = 0.0005  # share of steps that a garbage collector interrupts
    pause_ms: tuple[float, float] = (30.0, 80.0)
    graph_sizes: tuple[int, ...] = ()


class HiddenTruth(StepTimeModel):
    """Step times of an engine with habits."""

    source = "estimated"

    def __init__(self, kernels: StepTimeModel, habits: Habits, *, seed: int = 0) -> None:
        self._kernels = kernels
        self._habits = habits
        rng = np.random.default_rng(seed)
        self._factors: list[float] = np.exp(habits.noise * rng.standard_normal(_NUM_DRAWS)).tolist()
        pauses = rng.uniform(*habits.pause_ms, _NUM_DRAWS)
        pauses[rng.random(_NUM_DRAWS) > habits.pauses] = 0.0
        self._pauses_ms: list[float] = pauses.tolist()
        self.description = f"hidden: {kernels.description}"

    def step_ms(self, step: StepShape) -> float:
        if step.prefill_tokens + step.num_decodes <= 0:
            return 0.0
        habits = self._habits
        device_ms = self._device_ms(step)
        host_ms = (
            habits.host_ms
            + habits.host_per_decode_ms * step.num_decodes
            + habits.host_per_prompt_ms * step.num_prefills
        )
        total = max(host_ms, device_ms + 0.5) if habits.hides_host else host_ms + device_ms
        draw = sum(getattr(step, name) * by for name, by in _MIX.items()) * 0x9E3779B1 >> 12
        index = draw % _NUM_DRAWS
        return total * self._factors[index] + self._pauses_ms[(index * 7919 + 13) % _NUM_DRAWS]

    def _device_ms(self, step: StepShape) -> float:
        habits, kernels = self._habits, self._kernels
        decodes = step.num_decodes
        tokens = step.prefill_tokens + decodes
        whole_ms = kernels.step_ms(step)
        decode_ms = 0.0
        if decodes:
            long = StepShape.of_decodes(decodes, step.decode_context_tokens)
            short = StepShape.of_decodes(decodes, decodes)
            decode_ms = kernels.step_ms(long) - kernels.step_ms(short)
        rest_ms = whole_ms - decode_ms + self._padding_ms(tokens)
        bend = 1 + habits.bend * 4 * tokens * habits.bend_at / (tokens + habits.bend_at) ** 2
        rest_ms *= habits.products * bend
        decode_ms *= habits.attention * _wave_factor(decodes, habits.wave)
        hidden_ms = habits.overlap * min(rest_ms, decode_ms) if step.prefill_tokens else 0.0
        return rest_ms + decode_ms - hidden_ms

    def _padding_ms(self, tokens: int) -> float:
        padded = padded_tokens(tokens, self._habits.graph_sizes)
        if padded == tokens:
            return 0.0
        long, short = StepShape.of_decodes(padded, padded), StepShape.of_decodes(tokens, tokens)
        return self._kernels.step_ms(long) - self._kernels.step_ms(short)


def _wave_factor(decodes: int, wave: int) -> float:
    return -(-decodes // wave) * wave / decodes if wave and decodes else 1.0


def ingress_ms(arrival_ms: FloatArray, rng: np.random.Generator) -> FloatArray:
    """15 to 30 ms of a request's way to the scheduler; a server takes 1 ms of each, in turn."""
    free_ms = 0.0
    seen = []
    for arrival in arrival_ms.tolist():
        free_ms = max(free_ms, arrival) + 1.0
        seen.append(free_ms + float(rng.uniform(14.0, 29.0)))
    return np.array(seen)


def log_rows(
    trace: Trace,
    spec: EngineSpec,
    truth: StepTimeModel,
    *,
    clock: str = "engine",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per request, as a recorder would have written it."""
    rng = np.random.default_rng(seed)
    seen_ms = ingress_ms(trace.arrival_ms, rng)
    order = np.argsort(seen_ms, kind="stable")
    moved = _in_order(trace, seen_ms, order)
    run = replay(moved, spec, truth, "engine" if clock == "engine" else "clients")
    back = np.argsort(order, kind="stable")
    ttft_ms, decode_ms = run.ttft_ms[back], run.decode_ms[back]
    scheduled = run.result.requests.scheduled_ms - run.result.requests.arrival_ms
    wait_ms = np.clip(scheduled, 0.0, run.ttft_ms)[back]
    rows = []
    for row in range(len(trace)):
        start, end = trace.hash_offsets[row : row + 2]
        full = int(trace.input_tokens[row]) // trace.trace_block_size
        line: dict[str, Any] = {
            "id": f"bench-{row}",
            "arrival_ms": round(float(trace.arrival_ms[row]), 4),
            "input_tokens": int(trace.input_tokens[row]),
            "output_tokens": int(trace.output_tokens[row]),
            f"hash_ids_{trace.trace_block_size}": trace.hash_ids[start:end].tolist()[:full],
        }
        if clock == "engine":
            line["queue_ms"] = round(float(wait_ms[row]), 3)
            line["ttft_ms"] = round(float(ttft_ms[row]), 3)
            line["decode_ms"] = round(float(decode_ms[row]), 3)
        else:
            first = float(seen_ms[row] + ttft_ms[row]) + 2.0
            line["first_token_ms"] = round(first, 3)
            line["last_token_ms"] = round(first + float(decode_ms[row]), 3)
        rows.append(line)
    return rows


def _in_order(trace: Trace, seen_ms: FloatArray, order: Any) -> Trace:
    """The trace as the scheduler sees it: later arrivals may overtake."""
    moved = trace.take(order)
    return replace(
        moved, arrival_ms=seen_ms[order], previous_turn=None, delay_ms=None, dependencies=None
    )


def write_log(path: Path, setup: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """JSON lines, the set-up first, gzipped."""
    lines = [json.dumps({"setup": setup}), *map(json.dumps, rows)]
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return path
