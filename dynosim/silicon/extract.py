"""Asks aiconfigurator-core for everything a `SiliconTable` holds. Slow to import: only on a miss.

Works with aiconfigurator-core 0.12. Which operations depend on more than the number of tokens
(attention, also the recurrent layers of hybrid models) is found by asking, not by name.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray
from dynosim.silicon.measured_range import Extent, measured_decode_range, measured_prefill_range
from dynosim.timing.architecture import ModelEntry
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape

_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128, 256)
_REFERENCE_PREFILL_TOKENS = 2048
_REFERENCE_DECODE = (64, 2048)  # sequences, mean context
_CHECKED_POINTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class SiliconQuery:
    """One engine to be timed: what aiconfigurator needs to know of it."""

    model: ModelEntry
    system: str
    backend: str
    backend_version: str  # a number, or "current"
    tensor_parallel: int
    kv_heads_per_rank: int
    is_latent_attention: bool
    options: dict[str, Any]  # further keyword arguments: quantisation modes, expert sharding
    max_tokens: int
    max_context: int
    max_batch: int


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's warnings off the terminal; errors reach us as exceptions anyway."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(previous)


@contextmanager
def model_folder(entry: ModelEntry) -> Iterator[str]:
    """A folder that holds the model's config under the names that the library reads.

    Given a name, the library would download what it does not know, although its own package may
    ship the config; given a folder, it reads that.
    """
    with tempfile.TemporaryDirectory(prefix="dynosim-model-") as name:
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(entry.config))
        if entry.quantisation is not None:
            (folder / "hf_quant_config.json").write_text(json.dumps(entry.quantisation))
        yield name


def extract_table(query: SiliconQuery) -> SiliconTable:
    """The table of one engine; takes 1 to 2 s.

    Raises: ConfigError if the package is missing or its data do not cover the engine.
    """
    try:
        with quiet(), model_folder(query.model) as folder:
            from aiconfigurator_core.sdk import EngineHandle

            handle = EngineHandle.compile(
                folder,
                query.system,
                query.backend,
                tp_size=query.tensor_parallel,
                backend_version=query.backend_version,
                **query.options,
            )
            extraction = _Extraction(handle, query)
            table = extraction.table()
            return replace(table, meta=table.meta | extraction.errors_of(table))
    except ImportError as error:
        raise ConfigError(
            f"timing.kind aiconfigurator: {error}; install aiconfigurator-core,"
            " or use `timing: {kind: roofline}`"
        ) from None
    except Exception as error:  # the library raises its own, ValueError, KeyError, AssertionError
        if isinstance(error, MemoryError):
            raise
        raise ConfigError(_not_covered(query, error)) from error


def _not_covered(query: SiliconQuery, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"timing.kind aiconfigurator: no measurements of {query.model.name} on {query.system} with"
        f" {query.backend}, tensor_parallel {query.tensor_parallel}"
        f"{', ' + str(query.options) if query.options else ''} ({reason});"
        " use `timing: {kind: roofline}` for an estimate"
    )


def grid(low: float, high: float) -> FloatArray:
    """Powers of two, where the measurements sit, and their 1.25, 1.5 and 1.75 multiples."""
    nodes = {m * 2**k for k in range(24) for m in (1, 1.25, 1.5, 1.75)}
    return np.array(sorted(v for v in nodes if low <= v <= high and v == int(v)), np.float64)


class _Extraction:
    """Queries of one compiled engine."""

    def __init__(self, handle: Any, query: SiliconQuery) -> None:
        self.handle = handle
        self.query = query
        self.num_context_ops = self._num_ops(lambda i: self._context([i], 1, 64, 0))
        self.num_generation_ops = self._num_ops(lambda i: self._generation([i], 1, 64))
        self.shaped = self._shaped_context_ops()
        self.flat = [i for i in range(self.num_context_ops) if i not in self.shaped]
        self.decode_shaped = self._shaped_generation_ops()

    @staticmethod
    def _num_ops(ask: Any) -> int:
        count = 0
        while True:
            try:
                ask(count)
            except Exception:  # past the end; an operation without data fails again at its use
                return count
            count += 1

    def _context(self, indices: list[int], count: int, new: int, prefix: int) -> list[Any]:
        operations: list[Any] = self.handle.evaluate_context_ops(
            indices, batch_size=count, s=new, prefix=prefix
        )
        return operations

    def _generation(self, indices: list[int], batch: int, context: int) -> list[Any]:
        operations: list[Any] = self.handle.evaluate_generation_ops(
            indices, batch_size=batch, s=context + 1
        )
        return operations

    def _shaped_context_ops(self) -> list[int]:
        """Operations whose time is no function of the step's token count alone."""
        shapes = ((1, 2048, 0), (1, 2048, 8192), (4, 512, 0), (32, 64, 512))
        shaped = []
        for i in range(self.num_context_ops):
            operations = [self._context([i], *shape)[0] for shape in shapes]
            is_head = "logits" in operations[0][0]  # computed for one token per prompt
            if not is_head and len({round(operation[1], 9) for operation in operations}) > 1:
                shaped.append(i)
        return shaped

    def _shaped_generation_ops(self) -> list[int]:
        short, long = (
            [self._generation([i], 64, context)[0][1] for i in range(self.num_generation_ops)]
            for context in (512, 8192)
        )
        return [i for i in range(self.num_generation_ops) if abs(short[i] - long[i]) > 1e-9]

    def prefill_linear(self, tokens: int) -> float:
        return _total_ms(self._context(self.flat, 1, tokens, 0))

    def prefill_attention(self, count: int, new: int, prefix: int) -> float:
        return _total_ms(self._context(self.shaped, count, new, prefix))

    def decode_attention(self, batch: int, context: int) -> float:
        return _total_ms(self._generation(self.decode_shaped, batch, context))

    def decode_linear(self, batch: int) -> float:
        flat = [i for i in range(self.num_generation_ops) if i not in self.decode_shaped]
        return _total_ms(self._generation(flat, batch, 1024))

    def table(self) -> SiliconTable:
        self._verify_decomposition()
        query = self.query
        linear, head = self._flat_times()
        new_tokens = grid(1, query.max_tokens)
        prefix = np.r_[0.0, grid(16, query.max_context)]
        batches, contexts = grid(1, query.max_batch), grid(1, query.max_context)
        prefill = [
            [[self.prefill_attention(k, int(n), int(p)) for p in prefix] for n in new_tokens]
            for k in _COUNTS
        ]
        decode = [[self.decode_attention(int(b), int(c)) for c in contexts] for b in batches]
        measured_decode = self._extent(measured_decode_range)
        measured_prefill = self._extent(measured_prefill_range)
        return SiliconTable(
            linear_ms=linear,
            head_ms=head,
            counts=np.array(_COUNTS, np.float64),
            new_tokens=new_tokens,
            prefix_tokens=prefix,
            prefill_ms=np.array(prefill, np.float32),
            batches=batches,
            contexts=contexts,
            decode_ms=np.array(decode, np.float32),
            measured_batches=measured_decode[0],
            measured_contexts=measured_decode[1],
            measured_counts=measured_prefill[0],
            measured_new_tokens=measured_prefill[1],
            meta=self._meta(),
        )

    def _flat_times(self) -> tuple[FloatArray, FloatArray]:
        """`linear_ms` and `head_ms` of the table."""
        query = self.query
        linear = np.zeros(query.max_tokens + 1)
        linear[1:] = [self.prefill_linear(n) for n in range(1, query.max_tokens + 1)]
        head = np.zeros(query.max_batch + 1)
        head[1:] = [self.decode_linear(b) for b in range(1, query.max_batch + 1)]
        head -= linear[: query.max_batch + 1]
        return linear, head

    def _extent(self, measured_range: Callable[..., Extent]) -> Extent:
        return measured_range(
            self.query.system,
            self.query.backend,
            kv_heads=self.query.kv_heads_per_rank,
            is_latent=self.query.is_latent_attention,
        )

    def _verify_decomposition(self) -> None:
        """Our sums must equal the library's own totals, or its internals have changed."""
        ours = self.prefill_linear(700) + self.prefill_attention(1, 700, 300)
        theirs = self.handle.predict_prefill_latency(1, 1000, 300)
        batch, context = _REFERENCE_DECODE
        ours_decode = self.decode_linear(batch) + self.decode_attention(batch, context)
        theirs_decode = self.handle.predict_decode_latency(batch, context, 2)
        for a, b in ((ours, theirs), (ours_decode, theirs_decode)):
            if abs(a - b) > 1e-3 * b:
                raise ValueError(f"operations sum to {a} ms, the library says {b} ms")

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

    def _meta(self) -> dict[str, Any]:
        batch, context = _REFERENCE_DECODE
        prefill = self._context(list(range(self.num_context_ops)), 1, _REFERENCE_PREFILL_TOKENS, 0)
        decode = self._generation(list(range(self.num_generation_ops)), batch, context)
        return {
            "prefill_measured_share": _measured_share(prefill),
            "decode_measured_share": _measured_share(decode),
            "max_context": self.query.max_context,
            "experts": self._experts(),
        }

    def _experts(self) -> tuple[list[float], list[float]] | None:
        """Tokens of a rank, and how long experts take with what gathers and scatters tokens.

        None where there is one rank. The library names these operations alike for all models. They
        are asked for a step of prompts; decode steps have tables of their own, close to these.
        """
        if "attention_dp_size" not in self.query.options:
            return None
        operations = self._context(list(range(self.num_context_ops)), 1, 64, 0)
        common = [i for i, operation in enumerate(operations) if _is_common(operation[0])]
        tokens = grid(1, self.query.max_tokens).tolist()
        return tokens, [_total_ms(self._context(common, 1, int(n), 0)) for n in tokens]


def _is_common(name: str) -> bool:
    """Whether an operation computes experts, or moves tokens between ranks for it."""
    return name.endswith(("_moe", "_moe_pre_dispatch", "_moe_post_dispatch"))


def _total_ms(operations: list[Any]) -> float:
    return float(sum(op[1] for op in operations))


def _summary(errors: list[float]) -> dict[str, float]:
    return {
        "mean": float(np.mean(errors)),
        "p99": float(np.percentile(errors, 99)),
        "max": float(np.max(errors)),
    }


def _measured_share(operations: list[Any]) -> float:
    """Share of the time whose kernels were measured ("mixed": measured plus a small estimate)."""
    total = sum(op[1] for op in operations)
    known = sum(op[1] for op in operations if op[3] in ("silicon", "mixed"))
    return known / total if total > 0 else 0.0
