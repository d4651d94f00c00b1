"""What a run of one model on one hardware is timed by: asked of the tables as the run would ask."""

from dataclasses import dataclass

from dynosim.errors import ConfigError
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.timing.silicon_model import SiliconModel

_RANKS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Engine:
    """An engine at its defaults, as far as tables depend on it."""

    tensor_parallel: int
    version: str | None = None
    data_parallel: int = 1
    expert_parallel: bool = False
    block_size: int = 16
    num_gpu_blocks: int | str = "auto"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = "auto"
    async_scheduling: bool | None = None


@dataclass(frozen=True, slots=True)
class _Spec:
    """A timing section at its defaults."""

    backend: str
    backend_version: str | None = None
    trust_tables: bool = False
    step_overhead_ms: float | None = None
    ingress_ms: float | None = None
    egress_ms: float | None = None


@dataclass(frozen=True, slots=True)
class TableProbe:
    """The tables of one model on one hardware, at the least ranks that they have."""

    tensor_parallel: int
    model: SiliconModel

    def lines(self) -> list[str]:
        """For people: what is measured, by which version, what was refused."""
        first = f"{self.model.source} (tensor_parallel {self.tensor_parallel})"
        return [f"{first}: {self.model.description}", *self.model.notes]


def probe(model: str, hardware: str, backend: str) -> TableProbe | str:
    """What the tables answer for a model; or, where they have nothing, why."""
    reason = ""
    for ranks in _RANKS:
        try:
            silicon = aiconfigurator_model(
                _Spec(backend),
                model=model,
                hardware=hardware,
                engine=_Engine(tensor_parallel=ranks),
            )
        except ConfigError as error:
            reason = reason or str(error)
            continue
        return TableProbe(ranks, silicon)
    return reason
