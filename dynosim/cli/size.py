"""`dynosim size`: makes the sweep file that a question about a size stands for, and runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynosim.cli.sweep import SweepArguments, sweep_command
from dynosim.errors import ConfigError

if TYPE_CHECKING:
    from dynosim.config.sweep_loading import SweepConfig

SOURCE = "dynosim size"
"""What messages name in place of a file."""
MIN_REQUESTS, MAX_REQUESTS = 1200, 20_000
IN_FLIGHT_TIMES = 20
"""A made-up workload has so many times the requests that the SLA allows to be in flight,
so that the measurement is long enough whatever the layout."""
TYPICAL_TTFT_MS, TYPICAL_ITL_MS = 1000.0, 50.0
"""Where nothing is said of them, for that number only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeArguments:
    """What `dynosim size` was asked for. `tensor_parallel` and `router` are lists with commas."""

    model: str
    hardware: str
    gpus: int
    rps: float | None
    sessions_per_s: float | None
    concurrency: int | None
    trace: str | None
    isl: int | None
    osl: int | None
    ttft_ms: float | None
    itl_ms: float | None
    e2e_ms: float | None
    attainment: float | None
    tensor_parallel: str
    router: str
    overrides: Sequence[str]
    out: Path | None
    jobs: int | None
    resume: bool
    overwrite: bool
    as_json: bool
    fail_if_none: bool


def size_command(asked: SizeArguments) -> int:
    """Run the sweep that is meant; returns the exit code. Raises: as `sweep_command`."""

    def read() -> "SweepConfig":
        from dynosim.config.sweep_loading import sweep_config
        from dynosim.config.yaml_source import Document

        return sweep_config(Document(size_data(asked), SOURCE, Path.cwd()), asked.overrides)

    arguments = SweepArguments(
        file=Path(SOURCE),
        overrides=asked.overrides,
        out=asked.out,
        jobs=asked.jobs,
        executor="local",
        resume=asked.resume,
        overwrite=asked.overwrite,
        as_json=asked.as_json,
        intervals=None,
        fail_if_none=asked.fail_if_none,
    )
    return sweep_command(arguments, read)


def size_data(asked: SizeArguments) -> dict[str, Any]:
    """The sweep file, as data. Raises: ConfigError for too few or too many arguments."""
    need = _given(rps=asked.rps, sessions_per_s=asked.sessions_per_s, concurrency=asked.concurrency)
    if len(need) != 1:
        raise ConfigError("dynosim size: give one of --rps, --sessions-per-s and --concurrency")
    sla = _given(ttft_ms=asked.ttft_ms, itl_ms=asked.itl_ms, e2e_ms=asked.e2e_ms)
    if asked.attainment is not None:
        if not sla:
            raise ConfigError("--attainment: of no bound (give --ttft, --itl or --e2e)")
        sla["attainment"] = asked.attainment
    constraints: dict[str, Any] = {"gpu_budget": asked.gpus}
    vary = "concurrency" if asked.concurrency is not None else "rate"
    return {
        "name": f"size-{asked.model.rstrip('/').rpartition('/')[2].lower()}",
        "model": asked.model,
        "hardware": asked.hardware,
        "workload": _workload(asked),
        "timing": {"kind": "aiconfigurator"},
        "space": {
            "engine.tensor_parallel": _sizes(asked),
            "router.mode": _words(asked.router, "--router"),
        },
        "constraints": {**constraints, "sla": sla} if sla else constraints,
        "load": {"search": "capacity", "vary": vary, "need": need},
    }


def _given(**values: float | None) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _workload(asked: SizeArguments) -> dict[str, Any]:
    lengths = _given(isl=asked.isl, osl=asked.osl)
    if asked.trace is not None and not lengths:
        return {"trace": asked.trace}
    if asked.trace is not None or len(lengths) != 2:
        raise ConfigError("dynosim size: give either --trace, or both --isl and --osl")
    if asked.concurrency is not None:
        synthetic = {"requests": MIN_REQUESTS, **lengths, "arrival": "closed"}
        return {"synthetic": synthetic, "concurrency": asked.concurrency}
    rate = asked.rps or asked.sessions_per_s
    assert rate is not None, "one of three is given"
    return {"synthetic": {"requests": _num_requests(asked, rate), **lengths, "rate_rps": rate}}


def _num_requests(asked: SizeArguments, rate: float) -> int:
    """Enough for a measurement, by how long the SLA lets a request take."""
    ttft_ms = TYPICAL_TTFT_MS if asked.ttft_ms is None else asked.ttft_ms
    itl_ms = TYPICAL_ITL_MS if asked.itl_ms is None else asked.itl_ms
    most_ms = ttft_ms + itl_ms * (asked.osl or 0)
    if asked.e2e_ms is not None:
        most_ms = min(most_ms, asked.e2e_ms)
    wanted = IN_FLIGHT_TIMES * rate * most_ms / 1000.0
    return round(min(max(wanted, MIN_REQUESTS), MAX_REQUESTS))


def _sizes(asked: SizeArguments) -> list[int]:
    """The tensor parallelisms that the GPUs allow. Raises: ConfigError if they allow none."""
    words = _words(asked.tensor_parallel, "--tp")
    if not all(word.isdecimal() and int(word) for word in words):
        raise ConfigError(f"--tp {asked.tensor_parallel}: expected numbers, as in 1,2,4")
    fitting = [int(word) for word in words if int(word) <= asked.gpus]
    if not fitting:
        raise ConfigError(
            f"--tp {asked.tensor_parallel}: none fits into {asked.gpus} GPUs (raise --gpus)"
        )
    return fitting


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise ConfigError(f"{option} {text!r}: expected values with commas between them")
    return words
