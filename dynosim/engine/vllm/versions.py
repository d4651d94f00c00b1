"""vLLM's versions: how they are ordered, and which defaults changed between them.

Source: vLLM's releases, see the comment of each field.
"""

from dataclasses import dataclass
from itertools import takewhile

from dynosim.timing.graphs import vllm_graph_sizes

Version = tuple[int, ...]

NEWEST = "0.32.0"
"""The version whose defaults stand where none is stated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionDefaults:
    """What an engine of one version does unless told otherwise."""

    async_scheduling: bool  # plans a step while the one before it runs; since 0.14
    gpu_memory_utilization: float  # 0.9, since 0.21 0.92
    coarse_graph_sizes: bool  # CUDA graphs of every 16th batch size from 256 on, not every 8th


def parse_version(text: str) -> Version:
    """`0.15.1` as (0, 15, 1); what follows the numbers (rc1, +cu129, post1) is left out.

    Raises: ValueError if it does not start with a number.
    """
    numbers = []
    for part in text.strip().removeprefix("v").split("."):
        digits = "".join(takewhile(str.isdigit, part))
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    if not numbers:
        raise ValueError(f"expected a version such as 0.19.0, got {text!r}")
    return tuple(numbers)


def is_version(text: str) -> bool:
    """Whether `parse_version` understands it."""
    try:
        parse_version(text)
    except ValueError:
        return False
    return True


def version_defaults(text: str | None) -> VersionDefaults:
    """The defaults of a version; None: of `NEWEST`. Raises: ValueError, see `parse_version`."""
    version = parse_version(text or NEWEST)
    return VersionDefaults(
        async_scheduling=version >= (0, 14),
        gpu_memory_utilization=0.92 if version >= (0, 21) else 0.9,
        coarse_graph_sizes=version >= (0, 11, 1),
    )


def graph_sizes(version: str | None, max_num_seqs: int) -> tuple[int, ...]:
    """Batch sizes that a version captures CUDA graphs for unless told otherwise.

    Raises: ValueError, see `parse_version`.
    """
    return vllm_graph_sizes(max_num_seqs, coarse=version_defaults(version).coarse_graph_sizes)


def memory_fraction(version: str | None, stated: float | None) -> float:
    """Part of a GPU's memory that an engine uses: as stated (`gpu_memory_utilization`), else its
    version's default.

    Raises: ValueError, see `parse_version`.
    """
    return version_defaults(version).gpu_memory_utilization if stated is None else stated


def is_async(version: str | None, stated: bool | None) -> bool:
    """Whether steps are scheduled asynchronously: as stated, else by the version's default.

    Raises: ValueError, see `parse_version`.
    """
    return version_defaults(version).async_scheduling if stated is None else stated
