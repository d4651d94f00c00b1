"""What vLLM's CPU backend lacks to offload KV to host memory: somebody who makes the copies.

vLLM's own worker refuses to start there (its copies are CUDA's). Connector, scheduler, the tier
with its evictions, events and metrics are vLLM's; it loads this module by the name given in its
connector's configuration (`spec_module_path`). Copies are done as soon as they are asked for.
"""

from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class HostCopies(OffloadingWorker):
    """Copies blocks between the engine's cache and a second one of the tier's size."""

    def __init__(self, caches: list[torch.Tensor], num_chunks: int) -> None:
        self._caches = caches
        self._copies = [torch.zeros((num_chunks, *cache.shape[1:])).to(cache) for cache in caches]
        self._finished: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """See `OffloadingWorker`."""
        for cache, copy in zip(self._caches, self._copies, strict=True):
            copy[dst_spec.block_ids] = cache[src_spec.block_ids]
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        """See `OffloadingWorker`."""
        for cache, copy in zip(self._caches, self._copies, strict=True):
            cache[dst_spec.block_ids] = copy[src_spec.block_ids]
        self._finished.append(TransferResult(job_id, success=True))
        return True

    def get_finished(self) -> list[TransferResult]:
        """See `OffloadingWorker`."""
        finished, self._finished = self._finished, []
        return finished

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is under way."""


class HostCopiesSpec(CPUOffloadingSpec):
    """vLLM's tier in host memory, with these copies."""

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        """See `OffloadingSpec`."""
        assert self.blocks_per_chunk == 1, "a chunk is a block here"
        return HostCopies([cache.tensor for cache in kv_caches.tensors], self.num_chunks)
