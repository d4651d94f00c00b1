"""vLLM's own tier in host memory in a recorded scenario: what it decides, and when copies end.

The connector and its manager are vLLM's; the worker that would copy is not there. A load begins
with the step that it was planned with, a store with the next one; a step waits for the copies that
vLLM wants to be done before it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

Json = dict[str, Any]
TOTALS = ("host_stored", "host_loaded", "host_evicted", "host_refused", "flushed")
_BYTES_PER_TOKEN = 2 * 4  # K and V, one float each, of the one layer that there is


def transfer_config(offload: Json, block_size: int) -> KVTransferConfig:
    """The section `offload` of an engine as vLLM's configuration, with room for its chunks."""
    size = offload.get("blocks_per_chunk", 1)
    page = CPUOffloadingSpec.BLOCK_SIZE_ALIGNMENT
    chunk_bytes = -(-_BYTES_PER_TOKEN * block_size * size // page) * page
    return KVTransferConfig(
        kv_connector="OffloadingConnector",
        kv_role="kv_both",
        kv_connector_extra_config={
            "cpu_bytes_to_use": offload["chunks"] * chunk_bytes,
            "blocks_per_chunk": size,
            "eviction_policy": offload.get("policy", "lru"),
            "store_threshold": offload.get("store_threshold", 0),
            "offload_prompt_only": offload.get("prompt_only", False),
        },
    )


class OrderedNames(dict[str, None]):
    """A set that is walked through in the order of insertion: in that of vLLM there is none."""

    def add(self, name: str) -> None:
        """Insert one."""
        self[name] = None


@dataclass(slots=True)
class Copy:
    """One job; `call`: the first call of `schedule` that can report its end."""

    job: int
    name: str
    is_load: bool
    num_blocks: int
    call: int = 0
    end: int = 0


class VllmCopies:
    """Starts and ends the copies of a scheduler; writes them into the lines of the log."""

    def __init__(
        self, scheduler: Any, offload: Json, to_clock: Callable[[Any], int], *, has_time: bool
    ) -> None:
        self.scheduler = scheduler
        self.has_time = has_time
        self.once, self.each = (
            {way: to_clock(offload.get(f"{way}_{what}", 0)) for way in ("load", "store")}
            for what in ("delay", "per_block")
        )
        self.free = {"load": 0, "store": 0}
        self.under_way: list[Copy] = []
        self.decided: list[Copy] = []
        self.loaded_tokens: dict[str, int] = {}
        self.totals = dict.fromkeys(TOTALS, 0)
        self.kv: Json = {}  # of the call that goes on
        self.off: Json = {}
        self.num_keys: dict[str, list[int]] = {"load": [], "store": []}
        self.connector = scheduler.connector
        self.manager = self.connector.connector_scheduler.manager
        self._watch_connector()
        self._watch_manager()

    # ---- what vLLM decides ---------------------------------------------------------------------

    def _watch_connector(self) -> None:
        connector, ask, start = (
            self.connector,
            self.connector.get_num_new_matched_tokens,
            self.connector.update_state_after_alloc,
        )

        def asked(request: Any, num_tokens: int) -> Any:
            found = ask(request, num_tokens)
            if found[0] is None:
                self.off.setdefault("wait", []).append(request.request_id)
            return found

        def allocated(request: Any, blocks: Any, num_tokens: int) -> Any:
            if num_tokens > 0:
                name = request.request_id
                manager = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
                hit = self.scheduler.local_hits[name]
                new_blocks = len(manager.req_to_blocks[name]) - hit // manager.block_size
                self.kv.setdefault("load", []).append([name, hit, num_tokens, new_blocks])
                self.loaded_tokens[name] = self.loaded_tokens.get(name, 0) + num_tokens
            return start(request, blocks, num_tokens)

        connector.get_num_new_matched_tokens = asked
        connector.update_state_after_alloc = allocated

    def _watch_manager(self) -> None:
        manager, load, store = self.manager, self.manager.prepare_load, self.manager.prepare_store

        def loading(keys: Any, context: Any) -> Any:
            self.num_keys["load"].append(len(keys))
            return load(keys, context)

        def storing(keys: Any, context: Any) -> Any:
            output = store(keys, context)
            if output is None:
                self.off.setdefault("nospace", []).append(context.req_id)
                self.totals["host_refused"] += 1
                return None
            if output.keys_to_store:
                self.num_keys["store"].append(len(output.keys_to_store))
            if output.evicted_keys:
                self.off["evict"] = self.off.get("evict", 0) + len(output.evicted_keys)
            return output

        manager.prepare_load, manager.prepare_store = loading, storing

    # ---- steps ---------------------------------------------------------------------------------

    def scheduled(self, line: Json, output: Any, call: int, start: int) -> int:
        """A call of `schedule` is over; returns when its step can start that would at `start`."""
        self.scheduler.finished_req_ids = OrderedNames()
        work = output.kv_connector_metadata
        flushed = set(work.jobs_to_flush or ())
        stores = self._jobs("store", work.store_jobs)
        loads = self._jobs("load", work.load_jobs)
        if flushed:
            self.off["flush"] = sorted(flushed)
        self._begin(self.decided + [copy for copy in stores if copy.job in flushed], call, start)
        self.decided = [copy for copy in stores if copy.job not in flushed]
        for copy in self.under_way:
            if copy.job not in flushed:
                continue
            if self.has_time:
                start = max(start, copy.end)
            else:
                copy.end = min(copy.end, start)
        self._begin(loads, call, start)
        self.totals["flushed"] += len(flushed)
        self.totals["host_evicted"] += self.off.get("evict", 0)
        waiting = RequestStatus.WAITING_FOR_REMOTE_KVS
        num_loading = sum(r.status == waiting for r in self.scheduler.kv_holding_waiting)
        if num_loading:
            self.kv["rwait"] = num_loading
        for key, entries in (("kv", self.kv), ("off", self.off)):
            if entries:
                line[key] = entries
        self.kv, self.off = {}, {}
        return start

    def _jobs(self, way: str, jobs: Any) -> list[Copy]:
        """Copies that vLLM has just decided on."""
        copies = []
        for (number, job), num_keys in zip(jobs.items(), self.num_keys[way], strict=True):
            is_load = way == "load"
            blocks = (job.dst_spec if is_load else job.src_spec).block_ids
            copies.append(Copy(number, job.req_id, is_load, len(blocks)))
            row = [number, job.req_id, num_keys] + ([] if is_load else [len(blocks)])
            self.off.setdefault(way, []).append(row)
            self.totals["host_loaded" if is_load else "host_stored"] += num_keys
        self.num_keys[way].clear()
        return copies

    def _begin(self, copies: Iterable[Copy], call: int, now: int) -> None:
        for copy in copies:
            way = "load" if copy.is_load else "store"
            start = max(now, self.free[way]) if self.has_time else now
            copy.call, copy.end = call, start + self.once[way] + self.each[way] * copy.num_blocks
            self.free[way] = copy.end
            self.under_way.append(copy)

    def report(self, line: Json, call: int, now: int) -> KVConnectorOutput:
        """What has ended, for the scheduler's update."""
        ended = [copy for copy in self.under_way if copy.call <= call and copy.end <= now]
        self.under_way = [copy for copy in self.under_way if copy not in ended]
        output = KVConnectorOutput(finished_sending=[], finished_recving=[])
        done = OffloadingWorkerMetadata()
        for copy in sorted(ended, key=lambda copy: (copy.end, copy.job)):
            done.mark_completed(copy.job)
            line.setdefault("off", {}).setdefault("done", []).append(copy.job)
            if copy.is_load:
                output.finished_recving.append(copy.name)
                line.setdefault("kv", {}).setdefault("recv", []).append(copy.name)
        output.kv_connector_worker_meta = done if ended else None
        return output

    def updated(self, line: Json, call: int, now: int, errors: list[str]) -> list[str]:
        """The update is done; nothing has failed by it."""
        num_deferred = sum(len(blocks) for _, blocks in self.scheduler.deferred_frees)
        if num_deferred:
            line.setdefault("kv", {})["defer"] = num_deferred
        if line.get("off", {}).keys() & {"store", "evict"}:
            line["off"]["host"] = self._num_chunks()
        return errors

    def _num_chunks(self) -> int:
        """Chunks in the tier."""
        policy = self.manager._policy
        return len(policy.chunks) if hasattr(policy, "chunks") else len(policy.t1) + len(policy.t2)
