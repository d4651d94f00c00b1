"""Asks one compiled engine of aiconfigurator-core for the times of every kernel of its steps.

Which operations depend on more than the number of tokens (attention, also the recurrent layers of
hybrid models) is found by asking, not by name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from dynosim.records import FloatArray
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128, 256)
REFERENCE_PREFILL_TOKENS = 2048
REFERENCE_DECODE = (64, 2048)  # sequences, mean context
_CHECKED_POINTS = 200

_Answer = tuple[str, float, float, str]
"""What the library says of an operation: its name, ms, joules, and where that comes from."""


def grid(low: float, high: float) -> FloatArray:
    """Powers of two, where the measurements sit, and their 1.25, 1.5 and 1.75 multiples."""
    nodes = {m * 2**k for k in range(24) for m in (1, 1.25, 1.5, 1.75)}
    return np.array(sorted(v for v in nodes if low <= v <= high and v == int(v)), np.float64)


@dataclass(frozen=True, slots=True)
class TimedKernel:
    """One operation as the library answers it: operations of one name come as one."""

    name: str
    ms: float
    is_measured: bool  # "mixed" counts: measured plus a small estimate


class Extraction:
    """Queries of one compiled engine."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.num_context, self.num_generation = covered(handle)
        self.shaped = self._shaped_context()
        self.flat = [i for i in range(self.num_context) if i not in self.shaped]
        self.decode_shaped = self._shaped_generation()
        self.decode_flat = [i for i in range(self.num_generation) if i not in self.decode_shaped]

    def context(self, indices: list[int], count: int, new: int, prefix: int) -> list[_Answer]:
        answers: list[_Answer] = self.handle.evaluate_context_ops(
            indices, batch_size=count, s=new, prefix=prefix
        )
        return answers

    def generation(self, indices: list[int], batch: int, context: int) -> list[_Answer]:
        answers: list[_Answer] = self.handle.evaluate_generation_ops(
            indices, batch_size=batch, s=context + 1
        )
        return answers

    def _shaped_context(self) -> list[int]:
        """Operations whose time is no function of the step's token count alone."""
        shapes = ((1, 2048, 0), (1, 2048, 8192), (4, 512, 0), (32, 64, 512))
        shaped = []
        for i in range(self.num_context):
            operations = [self.context([i], *shape)[0] for shape in shapes]
            is_head = "logits" in operations[0][0]  # computed for one token per prompt
            if not is_head and len({round(operation[1], 9) for operation in operations}) > 1:
                shaped.append(i)
        return shaped

    def _shaped_generation(self) -> list[int]:
        short, long = (
            [self.generation([i], 64, context)[0][1] for i in range(self.num_generation)]
            for context in (512, 8192)
        )
        return [i for i in range(self.num_generation) if abs(short[i] - long[i]) > 1e-9]

    def prefill_flat(self, max_tokens: int) -> dict[str, FloatArray]:
        """By operation, its time at 1 to `max_tokens` new tokens of a prompt."""
        rows = [self.context(self.flat, 1, tokens, 0) for tokens in range(1, max_tokens + 1)]
        return _by_name(rows)

    def decode_flat_times(self, max_batch: int) -> dict[str, FloatArray]:
        """By operation, its time at 1 to `max_batch` sequences."""
        rows = [self.generation(self.decode_flat, b, 1024) for b in range(1, max_batch + 1)]
        return _by_name(rows)

    def prefill_attention(self, new: FloatArray, prefix: FloatArray) -> FloatArray:
        """At each number of prompts, mean new and mean cached tokens."""
        tokens, cached = new.astype(int).tolist(), prefix.astype(int).tolist()
        return np.array(
            [
                [[_total(self.context(self.shaped, k, n, p)) for p in cached] for n in tokens]
                for k in COUNTS
            ]
        )

    def decode_attention(self, batches: FloatArray, contexts: FloatArray) -> FloatArray:
        """At each number of sequences and mean context."""
        return np.array(
            [
                [_total(self.generation(self.decode_shaped, int(b), int(c))) for c in contexts]
                for b in batches
            ]
        )

    def verify(self) -> None:
        """Our sums must equal the library's own totals, or its internals have changed.

        Raises: ValueError.
        """
        ours = _total(self.context(self.flat, 1, 700, 0))
        ours += _total(self.context(self.shaped, 1, 700, 300))
        batch, context = REFERENCE_DECODE
        ours_decode = _total(self.generation(self.decode_flat, batch, 1024))
        ours_decode += _total(self.generation(self.decode_shaped, batch, context))
        theirs = self.handle.predict_prefill_latency(1, 1000, 300)
        theirs_decode = self.handle.predict_decode_latency(batch, context, 2)
        for a, b in ((ours, theirs), (ours_decode, theirs_decode)):
            if abs(a - b) > 1e-3 * b:
                raise ValueError(f"operations sum to {a} ms, the library says {b} ms")

    def reference_steps(self) -> tuple[list[TimedKernel], list[TimedKernel]]:
        """The operations of a prefill and of a decode step that reports speak of."""
        prefill = self.context(list(range(self.num_context)), 1, REFERENCE_PREFILL_TOKENS, 0)
        decode = self.generation(list(range(self.num_generation)), *REFERENCE_DECODE)
        return _asked(prefill), _asked(decode)

    def errors_of(self, table: SiliconTable) -> dict[str, Any]:
        """Relative errors of the table at random points (fixed seed) against direct queries."""
        model = SiliconModel(table)
        random = Random(20_240)
        decode, prefill = [], []
        for _ in range(_CHECKED_POINTS):
            batch = int(2 ** random.uniform(0, 9))
            context = int(2 ** random.uniform(6, 16.6))
            direct = self.handle.predict_decode_latency(batch, context, 2)
            ours = model.step_ms(StepShape.of_decodes(batch, batch * context))
            decode.append(abs(ours / direct - 1))
            count = int(2 ** random.uniform(0, 5)) if random.random() < 0.5 else 1
            new = max(8, int(2 ** random.uniform(3, 14)) // count)
            prefix = random.choice((0, int(2 ** random.uniform(4, 16.6))))
            direct = self.handle.predict_prefill_latency(count, new + prefix, prefix)
            ours = model.step_ms(StepShape.of_prompts(count, count * new, count * prefix))
            prefill.append(abs(ours / direct - 1))
        return {"decode_error": _summary(decode), "prefill_error": _summary(prefill)}


def covered(handle: Any) -> tuple[int, int]:
    """How many operations of a prefill and of a decode step the library has times of, in order."""
    return (
        _num(lambda i: handle.evaluate_context_ops([i], batch_size=1, s=64, prefix=0)),
        _num(lambda i: handle.evaluate_generation_ops([i], batch_size=1, s=65)),
    )


def _num(ask: Callable[[int], Any]) -> int:
    count = 0
    while True:
        try:
            ask(count)
        except Exception:  # past the end; an operation without data fails again at its use
            return count
        count += 1


def _asked(answer: list[_Answer]) -> list[TimedKernel]:
    return [TimedKernel(one[0], one[1], one[3] in ("silicon", "mixed")) for one in answer]


def _by_name(rows: list[list[_Answer]]) -> dict[str, FloatArray]:
    names = [one[0] for one in rows[0]] if rows else []
    times = np.array([[one[1] for one in row] for row in rows], np.float64)
    return {name: times[:, column] for column, name in enumerate(names)}


def _total(operations: list[_Answer]) -> float:
    return float(sum(operation[1] for operation in operations))


def _summary(errors: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(errors)),
        "p99": float(np.percentile(errors, 99)),
        "max": float(np.max(errors)),
    }
