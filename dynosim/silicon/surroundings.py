"""What a step takes beyond the model's kernels: graphs, shared kernels, sampling, the host, the
way to the client.

One place gathers it for tables and roofline alike, so that a blind prediction is the same whoever
asks for it.
"""

from dataclasses import dataclass

from dynosim.engine.vllm.versions import NEWEST, is_async, parse_version
from dynosim.engine.vllm.versions import graph_sizes as default_graph_sizes
from dynosim.silicon.attention_kernels import shared_kernel
from dynosim.silicon.host_times import Host, host_of, host_time
from dynosim.timing.architecture import ModelShape
from dynosim.timing.host import HostTime
from dynosim.timing.mixed import SharedKernel
from dynosim.timing.model import StepTimeModel, set_client_path
from dynosim.timing.protocols import HostSpec, TimedEngine
from dynosim.timing.sampler import Sampling, sampling_ms
from dynosim.timing.sheets import HardwareSheet

_TYPICAL_DECODES = 32  # where reports say what the host exposes


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Of one engine on one machine."""

    host: HostTime
    kernel: SharedKernel | None  # that computes prompts and decodes together
    graph_sizes: tuple[int, ...]
    sampling_ms: float  # of each sequence of a step
    ingress_ms: float
    egress_ms: float
    words: tuple[str, ...]

    def describe(self, model: StepTimeModel) -> None:
        """Give a model the client path, and its description what else was assumed."""
        set_client_path(model, ingress_ms=self.ingress_ms, egress_ms=self.egress_ms)
        model.description = ", ".join((model.description, *self.words))


def surroundings_of(
    sheet: HardwareSheet,
    shape: ModelShape,
    engine: TimedEngine,
    spec: HostSpec,
    *,
    backend: str = "vllm",
    graph_sizes: tuple[int, ...] | None = None,
    sampling: Sampling = "greedy",
) -> Surroundings:
    """By the constants of `host_times`, where `spec` states none.

    `graph_sizes`: batches with CUDA graphs; None: the default of the engine's version. `sampling`:
    how tokens are chosen, see `dynosim.timing.sampler`.
    """
    usual = host_of(sheet.name)
    sizes = graph_sizes
    if sizes is None:
        sizes = default_graph_sizes(engine.version, engine.max_num_seqs)
    is_pipelined = is_async(engine.version, engine.async_scheduling)
    if spec.step_overhead_ms is None:
        host = host_time(usual, is_async=is_pipelined, layers=shape.layers, has_graphs=bool(sizes))
    else:
        host = HostTime(base_ms=spec.step_overhead_ms)
    ingress_ms = usual.ingress_ms if spec.ingress_ms is None else spec.ingress_ms
    egress_ms = usual.egress_ms if spec.egress_ms is None else spec.egress_ms
    loop = "asynchronous" if is_pipelined else "synchronous"
    words = [_host_words(host, usual, loop, is_stated=spec.step_overhead_ms is not None)]
    if ingress_ms or egress_ms:
        is_usual = spec.ingress_ms is None and spec.egress_ms is None
        whose = f" ({usual.label})" if is_usual else ""
        words.append(f"client path {ingress_ms:g} + {egress_ms:g} ms{whose}")
    if sampling != "greedy":
        words.append(f"{sampling} sampling")
    kernel = shared_kernel(sheet.name, backend)
    return Surroundings(
        host,
        kernel,
        # Rows that pad a batch are all alike: they read one more expert at most.
        sizes if backend == "vllm" and not shape.experts else (),
        sampling_ms(
            sampling,
            vocabulary=shape.vocabulary,
            memory_gb_per_s=sheet.memory_gb_per_s,
            version=parse_version(engine.version or NEWEST),
        ),
        ingress_ms,
        egress_ms,
        tuple(word for word in words if word),
    )


def _host_words(host: HostTime, usual: Host, loop: str, *, is_stated: bool) -> str:
    """What a report says of the host; empty if it adds nothing."""
    exposed_ms = host.exposed_ms(0, _TYPICAL_DECODES)
    if is_stated:
        return f"plus {exposed_ms:g} ms per step" if exposed_ms else ""
    return f"plus {exposed_ms:.3g} ms of host per step ({usual.label}, {usual.engine}, {loop})"
