"""A run or sweep file to begin with: complete, commented, and ready to run.

What the comments say of a key is its description in the schema.
"""

import json
import os
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from dynosim.config.schema import is_path
from dynosim.errors import ConfigError
from dynosim.records import Trace
from dynosim.reference.catalogue import KeyFact, file_facts
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.support import NONE, SupportRow, support
from dynosim.timing.architecture import ModelShape, model_shape

WIDTH = 88
CONTEXT_STEP = 1024
MAX_GPUS_OF_WORKER = 8
ISL, OSL, RATE_RPS = 4000, 500, 4.0
"""Of a made-up load of which nothing is said."""
REQUESTS = 1000


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What is known of the file to write; None: a usual value. Times in ms."""

    path: Path  # where it will be: file names in it are relative to its folder
    model: str
    hardware: str
    gpus: int
    trace: Path | None = None
    format: str | None = None  # of the trace
    isl: int | None = None
    osl: int | None = None
    rps: float | None = None
    ttft_ms: float | None = None
    itl_ms: float | None = None
    schema: str | None = None  # the schema's file, for editors

    def check(self) -> None:
        """Raises: ConfigError for a model, hardware or trace that cannot be used."""
        made_up = {"--isl": self.isl, "--osl": self.osl, "--rps": self.rps}
        given = [option for option, value in made_up.items() if value is not None]
        if self.trace is not None and given:
            raise ConfigError(f"{given[0]}: a trace has its own lengths and times (drop --trace)")
        if self.format is not None and self.trace is None:
            raise ConfigError("--format: only a trace has a format (name it with --trace)")
        row = self.support_row
        if row.source == NONE:
            raise ConfigError(f"--model {self.model}: {row.note}")
        if self.trace is not None:
            assert self._trace is not None  # it has been read

    @cached_property
    def support_row(self) -> SupportRow:
        """The best step times that there are."""
        return support(self.model, self.hardware, "vllm")[0]

    @cached_property
    def shape(self) -> ModelShape:
        """Widths, layers and context of the model."""
        return model_shape(model_entry(self.model))

    @cached_property
    def _trace(self) -> Trace | None:
        if self.trace is None:
            return None
        from dynosim.workload.readers import read_trace

        return read_trace(self.trace, self.format, needs_arrival=False)

    @property
    def has_sla(self) -> bool:
        """Whether any bound is given."""
        return self.ttft_ms is not None or self.itl_ms is not None

    @property
    def has_times(self) -> bool:
        """Whether the workload says when requests come."""
        return self._trace is None or bool(self._trace.arrival_ms.max() > 0)

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of a prompt and of an answer, of a made-up load."""
        return self.isl or ISL, self.osl or OSL

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest request, in whole thousands (binary)."""
        if self._trace is None:
            longest = sum(self.lengths)
        else:
            longest = int((self._trace.input_tokens + self._trace.output_tokens).max())
        return -(-longest // CONTEXT_STEP) * CONTEXT_STEP

    @property
    def tensor_parallel(self) -> list[int]:
        """Sizes of a worker that the model's heads, the GPUs and a node allow."""
        most = min(self.gpus, MAX_GPUS_OF_WORKER)
        return [n for n in (1, 2, 4, 8) if n <= most and self.shape.heads % n == 0]

    @property
    def workers(self) -> list[int]:
        """Numbers of workers: powers of two, as many as there are GPUs at most."""
        return [1 << n for n in range(self.gpus.bit_length()) if 1 << n <= self.gpus]


def sweep_text(starter: Starter) -> str:
    """A sweep file that seeks what layouts of up to so many GPUs carry."""
    search = "capacity" if starter.has_sla else "curve"
    vary = "" if starter.has_times else ", vary: concurrency"
    space: dict[str, Iterable[object]] = {
        "engine.tensor_parallel": starter.tensor_parallel,
        "cluster.workers": starter.workers,
        "engine.max_num_batched_tokens": [2048, 8192],
        "router.mode": ["least-loaded", "kv"],
    }
    question = f"Which cluster of up to {starter.gpus} GPUs serves this load best?"
    return _text(
        [
            *_head(starter, question, "sweep"),
            *_workload(starter),
            *_engine(starter),
            *_timing(starter),
            "",
            "# What varies: every combination is tried that fits the GPUs.",
            "space:",
            *(line for key, values in space.items() for line in _dimension(key, values)),
            "",
            "constraints:",
            *_key("constraints.gpu_budget", starter.gpus),
            *_sla(starter, "constraints.sla"),
            "",
            *_key("load", f"{{search: {search}{vary}}}"),
        ]
    )


def run_text(starter: Starter) -> str:
    """A run file for one cluster of so many GPUs."""
    tensor_parallel = starter.tensor_parallel[-1]
    lines = [
        *_head(starter, "One cluster under one load.", "run"),
        *_workload(starter),
        *_engine(starter, tensor_parallel),
        *_timing(starter),
        "cluster:",
        *_key("cluster.workers", max(starter.gpus // tensor_parallel, 1)),
        "router:",
        *_key("router.mode", "kv" if starter.trace is not None else "least-loaded"),
        *_sla(starter, "sla"),
    ]
    return _text(lines)


def _head(starter: Starter, question: str, command: str) -> list[str]:
    schema = [] if starter.schema is None else [
        f"# yaml-language-server: $schema={starter.schema}"
    ]  # fmt: skip
    return [
        *schema,
        f"# {question}",
        f"#   dynosim {command} {starter.path}",
        "# `dynosim explain KEY` says more of a key, and lists those that are not here.",
        f"name: {_scalar(starter.path.stem)}",
        f"model: {_scalar(_here(starter, starter.model))}",
        f"hardware: {_scalar(_here(starter, starter.hardware))}",
        "",
    ]


def _workload(starter: Starter) -> list[str]:
    if starter.trace is not None:
        trace = _scalar(os.path.relpath(starter.trace, starter.path.parent))
        closed = [] if starter.has_times else _key("workload.concurrency", 32)
        format = [] if starter.format is None else _key("workload.format", starter.format)
        return ["workload:", *_key("workload.trace", trace), *format, *closed]
    isl, osl = starter.lengths
    rate = RATE_RPS if starter.rps is None else starter.rps
    return [
        "workload:",
        "  synthetic:",
        *_key("workload.synthetic.requests", REQUESTS),
        *_key("workload.synthetic.isl", isl),
        *_key("workload.synthetic.osl", osl),
        *_key("workload.synthetic.rate_rps", f"{rate:g}"),
    ]


def _engine(starter: Starter, tensor_parallel: int | None = None) -> list[str]:
    size = [] if tensor_parallel is None else _key("engine.tensor_parallel", tensor_parallel)
    trained = starter.shape.max_context
    warning = []
    if trained is not None and trained < starter.context_tokens:
        warning = [f"  # More than the {trained} that the model's file states: see its card."]
    return ["engine:", *size, *_key("engine.max_model_len", starter.context_tokens), *warning]


def _timing(starter: Starter) -> list[str]:
    row = starter.support_row
    return ["timing:", f"  # {row.source}: {row.note}", f"  kind: {row.kind}"]


def _sla(starter: Starter, section: str) -> list[str]:
    if not starter.has_sla:
        return []
    depth = section.count(".")
    bounds = (("ttft_ms", starter.ttft_ms), ("itl_ms", starter.itl_ms))
    lines = ["  " * depth + f"{section.rpartition('.')[2]}:"]
    for name, bound in bounds:
        if bound is not None:
            lines += _key(f"{section}.{name}", f"{bound:g}")
    return lines


def _key(key: str, value: object) -> list[str]:
    """A line of the file under what its key means."""
    fact = _facts()[key]
    unit = f" Unit: {fact.unit}." if fact.unit else ""
    indent = "  " * key.count(".")
    return [*_comment(fact.meaning + unit, indent), f"{indent}{key.rpartition('.')[2]}: {value}"]


def _dimension(key: str, values: Iterable[object]) -> list[str]:
    """The same for a key of `space` and its values."""
    listed = ", ".join(map(str, values))
    return [*_comment(_facts()[key].meaning, "  "), f"  {key}: [{listed}]"]


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}# "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start)


@cache
def _facts() -> dict[str, KeyFact]:
    return {fact.key: fact for fact in file_facts()}


def _here(starter: Starter, name: str) -> str:
    """A model or hardware by its name, or its file as seen from the starter's folder."""
    if not Path(name).exists():
        return name
    relative = os.path.relpath(name, starter.path.parent)
    return relative if is_path(relative) else f"./{relative}"


def _scalar(text: str) -> str:
    """Text as YAML has it."""
    is_plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in _WORDS
    return text if is_plain else json.dumps(text)


_WORDS = ("true", "false", "yes", "no", "on", "off", "null")
"""Which YAML reads as something else than text."""


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"
