"""Constants of hosts: CPU time of an engine's step, and the way between a client and its scheduler.

Kernel tables and rooflines hold neither. Every figure stands here and nowhere else, by the class of
machine that a GPU usually sits in, with the interval it is believed to lie in and what it was
chosen on. `timing.step_overhead_ms`, `ingress_ms` and `egress_ms` state other ones.
"""

from dataclasses import dataclass, replace

from dynosim.timing.host import HostTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host of a class of GPUs. Intervals are factors: 95 % of machines lie within."""

    label: str  # in words, for reports
    engine: str  # that the work was seen with; other versions are taken to do the same
    base_ms: float  # work of every step: schedule, prepare inputs, sample, update
    per_sequence_ms: float  # more for each sequence of a step
    per_prompt_ms: float  # more for each prompt of a step
    exposed_share: float  # of that work under asynchronous scheduling; 1 under synchronous
    ingress_ms: float  # HTTP server, tokenizer, hand-over to the scheduler's process
    egress_ms: float  # from the sampled token over detokenizer and stream to the client
    step_interval: tuple[float, float]
    client_interval: tuple[float, float]
    source: str


PIECE_LAUNCH_MS = 0.06
"""Per layer of a step with prompts: attention is launched between two pieces of graph. A round
number (a dozen launches of 5 us), hidden behind all but the shortest steps; 0.03 to 0.12."""

EAGER_LAUNCH_MS = 0.15
"""Per layer of any step without CUDA graphs (`enforce_eager`), where every kernel is launched: so
that a model of 32 layers takes 4.8 ms. A round number, some 20 launches in Python; 0.08 to 0.3."""

_SERVER = Host(
    label="H100 class",
    engine="vLLM 0.12 and 0.15.1",
    # synchronous: 90 closed loops of vLLM 0.12 with Qwen3-32B on 2, 4 and 8 H100 (aiconfigurator's
    # silicon sample): 2 ms at 8 sequences, 2.3 at 32, less what sampling takes
    base_ms=1.6,
    per_sequence_ms=0.01,
    per_prompt_ms=0.0,  # not told apart from the base by these loops
    # asynchronous: 0.5 ms of it, from 11 published experiments of vLLM 0.15.1 on H100
    exposed_share=0.31,
    # the same experiments: first tokens come 5 to 9 ms after those of the engine
    ingress_ms=5.0,
    egress_ms=0.0,
    step_interval=(0.5, 2.0),
    client_interval=(0.6, 1.8),
    source="closed loops of vLLM 0.12 and published experiments of vLLM 0.15.1, all on H100",
)

_OLDER_SERVER = replace(
    _SERVER,
    label="A100 class",
    # the work of the H100 class on CPUs of a generation before, slower by about 1.5 a core
    base_ms=2.4,
    per_sequence_ms=0.015,
    # published A100 runs show 13 to 19 ms of first token that engines do not see: 14 of them
    ingress_ms=14.0,
    client_interval=(0.5, 1.5),
    source="the H100 class, 1.5 times as long; client path of published A100 runs",
)

# the work of the H100 class on CPUs with higher clocks and a slower PCIe: taken as equal
_WORKSTATION = replace(
    _SERVER,
    label="workstation class",
    client_interval=(0.5, 3.0),
    source="the H100 class; not measured on these machines",
)

_CLASSES = (
    (("h100", "h200", "h800", "h20", "gh200", "b200", "b300", "gb200", "gb300", "mi300"), _SERVER),
    (("a100", "a800", "a30", "a40", "a10", "v100", "t4", "mi2"), _OLDER_SERVER),
)
"""Beginnings of the hardware's name; what is not in it stands in a workstation."""


def host_of(hardware: str) -> Host:
    """The host of machines with this GPU, by the name of its data sheet."""
    for names, host in _CLASSES:
        if hardware.startswith(names):
            return host
    return _WORKSTATION


def host_time(host: Host, *, is_async: bool, layers: int, has_graphs: bool) -> HostTime:
    """What that host adds to the steps of an engine."""
    return HostTime(
        base_ms=host.base_ms,
        per_sequence_ms=host.per_sequence_ms,
        per_prompt_ms=host.per_prompt_ms,
        exposed_share=host.exposed_share if is_async else 1.0,
        launch_ms=layers * (PIECE_LAUNCH_MS if has_graphs else EAGER_LAUNCH_MS),
        launches_decodes=not has_graphs,
        interval=host.step_interval,
    )
