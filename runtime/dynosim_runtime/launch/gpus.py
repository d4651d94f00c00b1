"""Which GPUs this machine has, and which worker gets which: the check before a GPU plan starts."""

import csv
import subprocess
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dynosim_runtime.errors import LiveError

FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version")
QUERY = ("nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits")
QUERY_TIMEOUT_S = 30.0

Runner = Callable[[Sequence[str]], str]
"""Runs a command, returns its output. Raises: LiveError that says why it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as nvidia-smi tells it; memory None where it does not (MIG, shared memory)."""

    index: int
    name: str
    memory_total_mib: int | None
    memory_free_mib: int | None
    driver: str

    def lacks_memory(self, share: float) -> bool:
        """Whether less than `share` of its memory is free: an engine would refuse to start."""
        if self.memory_total_mib is None or self.memory_free_mib is None:
            return False
        return self.memory_free_mib < share * self.memory_total_mib


def run_query(command: Sequence[str]) -> str:
    """The command's output. Raises: LiveError that says why there is none."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=False
        )
    except FileNotFoundError:
        raise LiveError(f"{command[0]} not found") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LiveError(f"{command[0]}: {error}") from None
    if done.returncode != 0:
        text = (done.stderr or done.stdout).strip().splitlines()
        raise LiveError(f"{command[0]}: {text[0] if text else f'exit code {done.returncode}'}")
    return done.stdout


def parse_gpus(text: str) -> list[Gpu]:
    """The GPUs in nvidia-smi's answer to `QUERY`. Raises: LiveError if it is in another form."""
    gpus = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) != len(FIELDS) or not row[0].strip().isdigit():
            raise LiveError(f"nvidia-smi: cannot read {','.join(row)!r}")
        index, name, total, free, driver = (value.strip() for value in row)
        gpus.append(
            Gpu(
                index=int(index),
                name=name,
                memory_total_mib=_mib(total),
                memory_free_mib=_mib(free),
                driver=driver,
            )
        )
    return gpus


def _mib(value: str) -> int | None:
    return int(value) if value.isdigit() else None  # "[N/A]", "[Not Supported]"


def visible_gpus(gpus: Sequence[Gpu], cuda_visible_devices: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order. Raises: LiveError if it is not numbers.

    Names by UUID are refused, since the workers' own setting is made of numbers.
    """
    if cuda_visible_devices is None:
        return list(gpus)
    by_index = {str(gpu.index): gpu for gpu in gpus}
    names = [name.strip() for name in cuda_visible_devices.split(",") if name.strip()]
    unknown = [name for name in names if name not in by_index]
    if unknown:
        raise LiveError(
            f"CUDA_VISIBLE_DEVICES={cuda_visible_devices}: {unknown[0]} is no index of a GPU here "
            f"(there are: {', '.join(by_index) or 'none'})"
        )
    return [by_index[name] for name in names]


def assign_gpus(
    widths: Sequence[int],
    memory_share: float,
    *,
    cuda_visible_devices: str | None = None,
    run: Runner = run_query,
    taken: Collection[int] = (),
) -> list[tuple[Gpu, ...]]:
    """The GPUs of each worker, as many neighbours as its width (`tensor_parallel`) says.

    GPUs with less than `memory_share` of their memory free are passed over, and so are those whose
    index is `taken` by workers that run. Raises: LiveError when there are not enough, naming what
    is needed and what there is.
    """
    needed = sum(widths)
    gpus, why = _usable_gpus(memory_share, cuda_visible_devices, run)
    gpus = [gpu for gpu in gpus if gpu.index not in taken]
    if taken and len(gpus) < needed:
        left = _counted(len(gpus), "GPU") if gpus else "no GPU"
        raise LiveError(
            f"one more worker needs {_counted(needed, 'GPU')}, this machine has {left} left{why} "
            "(lower the controller's maximum, or its GPU budget)"
        )
    if len(gpus) < needed:
        workers = " + ".join(
            f"{_counted(number, 'worker')} x TP {width}"
            for width, number in Counter(widths).items()
        )
        raise LiveError(
            f"plan needs {workers} = {_counted(needed, 'GPU')}, this machine has "
            f"{len(gpus) or 'none'}{why}; use --mock, or --engine vllm-cpu --model DIR for the "
            "real engine on a CPU"
        )
    ends = accumulate(widths)
    return [tuple(gpus[end - width : end]) for width, end in zip(widths, ends, strict=True)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _usable_gpus(
    memory_share: float, cuda_visible_devices: str | None, run: Runner
) -> tuple[list[Gpu], str]:
    """GPUs with enough free memory, and what to say of the others."""
    try:
        gpus = visible_gpus(parse_gpus(run(QUERY)), cuda_visible_devices)
    except LiveError as error:
        return [], f": {error}"
    busy = [gpu for gpu in gpus if gpu.lacks_memory(memory_share)]
    if not busy:
        return gpus, ""
    gpu = busy[0]
    why = (
        f" with {memory_share:.0%} of their memory free (GPU {gpu.index}: "
        f"{gpu.memory_free_mib} of {gpu.memory_total_mib} MiB free)"
    )
    return [gpu for gpu in gpus if gpu not in busy], why
