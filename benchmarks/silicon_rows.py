"""The rows of AIConfigurator's silicon sample, and which of them are compared.

The sample ships inside aiconfigurator-core (`systems/silicon_sample.csv`, read at run time and not
copied here): closed loops of real engines, with concurrency, lengths and measured TTFT and TPOT.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

SYSTEMS = ("h100_sxm", "h200_sxm")

_RELEASES = (("2025-10-02", "0.11.0"), ("2025-12-03", "0.12.0"))
"""vLLM's releases before rows that state no version: they ran the newest of their day."""

_QUEUE_SHARE, _QUEUE_MS = 0.05, 2000.0
"""A queue shows where the first token takes more than both: a share of all the tokens after it, and
a time. Prompts that only wait for each other stay below 4.5 % in every row with room for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """One closed loop; equal ones that were measured repeatedly are one row of their medians."""

    model: str
    system: str
    version: str
    precision: str | None  # None: the checkpoint's 16 bit
    tensor_parallel: int
    expert_tensor_parallel: int
    expert_parallel: int
    ranks: int  # of attention, each with its own requests
    concurrency: int
    isl: int
    osl: int
    source: str  # what the sample says of where it is from
    ttft_ms: float
    tpot_ms: float
    measured: int = 1  # how many times

    @property
    def deployment(self) -> tuple[str, ...]:
        """What rows of one group have in common."""
        return (
            self.model,
            self.system,
            self.version,
            self.precision or "",
            f"tp{self.tensor_parallel}",
            f"moe{self.expert_tensor_parallel}x{self.expert_parallel}",
        )

    @property
    def label(self) -> str:
        """Model and format of its weights, for tables."""
        return f"{self.model.split('/')[-1]} {self.precision or 'bf16'} {self.system[:4]}"

    @property
    def load(self) -> tuple[int, int, int]:
        return (self.isl, self.osl, self.concurrency)

    @property
    def is_calibration(self) -> bool:
        """Whether constants of ours were chosen on it, so that it counts for nothing."""
        return self.model == "Qwen/Qwen3-32B" and self.precision is None

    @property
    def has_queue(self) -> bool:
        """Whether its requests had to wait for room."""
        decode_ms = self.tpot_ms * (self.osl - 1)
        return self.ttft_ms > max(_QUEUE_MS, _QUEUE_SHARE * decode_ms)

    @property
    def states_concurrency(self) -> bool:
        """Whether the source says how many requests were in flight when it was measured."""
        return "silicon_concurrency=" in self.source

    @property
    def is_from_ranks(self) -> bool:
        """Whether several ranks of attention share the experts."""
        return self.ranks > 1


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows by what they are good for."""

    scored: tuple[SampleRow, ...]
    calibration: tuple[SampleRow, ...]
    queued: tuple[SampleRow, ...]
    left_out: dict[str, int]  # reason -> rows


def read_sample(path: Path) -> list[SampleRow]:
    """vLLM's rows of aggregated serving on `SYSTEMS`, repeated ones as one."""
    with path.open(newline="") as file:
        rows = [
            _row(fields)
            for fields in csv.DictReader(file)
            if fields["backend"] == "vllm"
            and fields["mode"] == "agg"
            and fields["system"] in SYSTEMS
        ]
    return _without_repeats(rows)


def _row(fields: dict[str, str]) -> SampleRow:
    tensor = _count(fields["tp_size"])
    expert_tensor = max(1, _count(fields["moe_tp_size"]))
    expert = max(1, _count(fields["moe_ep_size"]))
    ranks = _count(fields["attention_dp_size"]) or max(1, expert_tensor * expert // tensor)
    per_rank = ranks if fields["attention_dp_size"] else 1  # elsewhere the batch is of all ranks
    return SampleRow(
        model=fields["model_path"],
        system=fields["system"],
        version=fields["backend_version"] or _version_of(fields["silicon_data_source"]),
        precision=fields["precision"] or None,
        tensor_parallel=tensor,
        expert_tensor_parallel=expert_tensor,
        expert_parallel=expert,
        ranks=ranks,
        concurrency=_count(fields["batch_size"]) * per_rank,
        isl=int(fields["isl"]),
        osl=int(fields["osl"]),
        source=fields["silicon_data_source"],
        ttft_ms=float(fields["silicon_ttft_ms"]),
        tpot_ms=float(fields["silicon_tpot_ms"]),
    )


def _count(text: str) -> int:
    return int(float(text)) if text else 0


def _version_of(source: str) -> str:
    """The newest release of the day that a row was measured."""
    day = source.split("measured=")[1][:10]
    return [version for released, version in _RELEASES if released <= day][-1]


def _without_repeats(rows: Iterable[SampleRow]) -> list[SampleRow]:
    alike: dict[tuple[object, ...], list[SampleRow]] = {}
    for row in rows:
        alike.setdefault((*row.deployment, row.ranks, row.load), []).append(row)
    return [
        replace(
            of[0],
            ttft_ms=median(row.ttft_ms for row in of),
            tpot_ms=median(row.tpot_ms for row in of),
            measured=len(of),
        )
        for of in alike.values()
    ]


def select(
    rows: Sequence[SampleRow],
    number: int,
    *,
    with_ranks: bool = False,
    is_possible: Callable[[SampleRow], bool] = lambda row: True,
) -> Selection:
    """`number` rows to score (0: all), an equal share of every deployment, spread over its loads.

    Calibration rows and those with a queue are apart. Left out: rows of several ranks unless
    `with_ranks`, rows that do not say how many requests were in flight, and impossible ones.
    """
    calibration = tuple(row for row in rows if row.is_calibration)
    rest = [row for row in rows if not row.is_calibration]
    left_out: dict[str, int] = {}
    usable = []
    for row in rest:
        reason = _reason(row, with_ranks, is_possible)
        if reason is None:
            usable.append(row)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    queued = tuple(row for row in usable if row.has_queue)
    groups: dict[tuple[str, ...], list[SampleRow]] = {}
    for row in usable:
        if not row.has_queue:
            groups.setdefault(row.deployment, []).append(row)
    ordered = [sorted(groups[key], key=lambda row: row.load) for key in sorted(groups)]
    shares = _shares([len(group) for group in ordered], number)
    scored = [row for group, k in zip(ordered, shares, strict=True) for row in spread(group, k)]
    return Selection(tuple(scored), calibration, queued, left_out)


def _reason(
    row: SampleRow, with_ranks: bool, is_possible: Callable[[SampleRow], bool]
) -> str | None:
    """Why a row is left out; None if it is not."""
    if row.is_from_ranks and not with_ranks:
        return "several data-parallel ranks"
    if not row.states_concurrency:
        return "requests in flight not stated"
    if not row.has_queue and not is_possible(row):
        return "prompts found in the cache"
    return None


def _shares(sizes: list[int], number: int) -> list[int]:
    """How many of each group, so that they come to `number`: one more of each in turn."""
    if number <= 0:
        return sizes
    shares = [0] * len(sizes)
    while sum(shares) < min(number, sum(sizes)):
        for index, size in enumerate(sizes):
            if shares[index] < size and sum(shares) < number:
                shares[index] += 1
    return shares


def spread(group: Sequence[SampleRow], number: int) -> list[SampleRow]:
    """So many of a group, evenly over its order, the first and the last among them."""
    if number >= len(group):
        return list(group)
    if number == 1:
        return [group[len(group) // 2]]
    last = len(group) - 1
    return [group[round(index * last / (number - 1))] for index in range(number)]
