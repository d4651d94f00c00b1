"""KV transfers of a recorded scenario: vLLM's connector without any data, and when transfers end.

The connector is the scheduler's side of one that pulls, as vLLM's NixlConnector does: one load for
a request, of what it does not find locally; blocks of a request to be sent stay held after its end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request, RequestStatus

Json = dict[str, Any]
COMPLETE = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


class PullConnector(KVConnectorBase_V1):
    """Knows which requests load and which are sent, by their `remote` sections."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.remote: dict[str, Json] = {}
        self.to_load: set[str] = set()
        self.loads: list[tuple[str, int]] = []  # started since they were taken: id, tokens
        self.held: list[str] = []  # since they were taken

    def expect(self, name: str, remote: Json) -> None:
        """A request comes."""
        self.remote[name] = remote
        if remote.get("recv"):
            self.to_load.add(name)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        """What is to be loaded beyond the local hit, and that this takes time."""
        if request.request_id not in self.to_load:
            return 0, False
        prompt = request.num_prompt_tokens
        tokens = min(self.remote[request.request_id].get("tokens", prompt), prompt)
        num_tokens = tokens - num_computed_tokens
        return (num_tokens, True) if num_tokens > 0 else (0, False)

    def update_state_after_alloc(self, request: Request, blocks: Any, num_tokens: int) -> None:
        """A request got blocks: its one chance to load."""
        if request.request_id in self.to_load:
            self.to_load.discard(request.request_id)
            if num_tokens > 0:
                self.loads.append((request.request_id, num_tokens))

    def request_finished(self, request: Request, block_ids: Any) -> tuple[bool, None]:
        """Whether its blocks stay held."""
        wants = self.remote.get(request.request_id, {}).get("send")
        if not wants or request.status not in COMPLETE or not block_ids:
            return False, None
        self.held.append(request.request_id)
        return True, None

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """There is no worker to tell anything."""
        return KVConnectorMetadata()

    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        """Worker's side."""

    def wait_for_layer_load(self, *args: Any, **kwargs: Any) -> None:
        """Worker's side."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Worker's side."""

    def wait_for_save(self) -> None:
        """Worker's side."""


@dataclass(slots=True)
class Transfer:
    """One under way; `call`: the first call of `schedule` that can report its end."""

    name: str
    is_load: bool
    call: int
    end: int


class HitFailedError(Exception):
    """A load is to fail in a block that was found here: others' requests would suffer too."""


class VllmTransfers:
    """Starts and ends the transfers of a scheduler; writes them into the lines of the log."""

    def __init__(self, scheduler: Any, block_size: int, to_clock: Callable[[Any], int]) -> None:
        self.scheduler = scheduler
        self.connector: PullConnector = scheduler.connector
        self.block_size = block_size
        self.to_clock = to_clock
        self.under_way: list[Transfer] = []
        self.loaded_tokens: dict[str, int] = {}  # by request
        self.totals: Json = {}

    def _blocks(self, name: str) -> list[Any]:
        manager = self.scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        return list(manager.req_to_blocks.get(name, ()))

    def scheduled(self, line: Json, output: Any, call: int, now: int) -> int:
        """A call of `schedule` started loads, to execute from `now` on, as the step does."""
        kv: Json = {}
        for name, num_tokens in self.connector.loads:
            hit = self.scheduler.local_hits[name]
            fail = self.connector.remote[name].get("fail")
            if isinstance(fail, int) and fail * self.block_size < hit:
                raise HitFailedError
            new_blocks = len(self._blocks(name)) - hit // self.block_size
            kv.setdefault("load", []).append([name, hit, num_tokens, new_blocks])
            self.loaded_tokens[name] = num_tokens
            self._start(name, is_load=True, call=call, now=now)
        self.connector.loads.clear()
        waiting = [
            request
            for request in self.scheduler.kv_holding_waiting
            if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS
        ]
        if waiting:
            kv["rwait"] = len(waiting)
        if kv:
            line["kv"] = kv
        return now

    def report(self, line: Json, call: int, now: int) -> KVConnectorOutput:
        """What has ended, for the scheduler's update."""
        ended = [one for one in self.under_way if one.call <= call and one.end <= now]
        ended.sort(key=lambda one: one.end)
        self.under_way = [one for one in self.under_way if one not in ended]
        output = KVConnectorOutput(finished_sending=[], finished_recving=[])
        kv = line.get("kv", {})
        for one in ended:
            kv.setdefault("recv" if one.is_load else "sent", []).append(one.name)
            if not one.is_load:
                output.finished_sending.append(one.name)
                continue
            output.finished_recving.append(one.name)
            fail = self.connector.remote[one.name].get("fail")
            if fail is not None:
                blocks = self._blocks(one.name)
                lost = [b for b in blocks if b.block_hash is None] if fail == "all" else None
                output.invalid_block_ids |= {b.block_id for b in lost or [blocks[int(fail)]]}
                kv.setdefault("fail", []).append([one.name, None])
        if kv:
            line["kv"] = kv
        return output

    def updated(self, line: Json, call: int, now: int, errors: list[str]) -> list[str]:
        """The update is done; returns its errors in the order of their loads' ends.

        vLLM has them in a set, whose order means nothing.
        """
        kv = line.get("kv", {})
        for failure in kv.get("fail", ()):
            request = self.scheduler.requests.get(failure[0])
            failure[1] = -1 if request is None else request.num_computed_tokens
        errors = [name for name in kv.get("recv", ()) if name in errors]
        if errors:
            kv["err"] = errors
        for name in self.connector.held:
            kv.setdefault("hold", []).append(name)
            self._start(name, is_load=False, call=call + 1, now=now)
        self.connector.held.clear()
        num_deferred = sum(len(blocks) for _, blocks in self.scheduler.deferred_frees)
        if num_deferred:
            kv["defer"] = num_deferred
        if kv:
            line["kv"] = kv
        return errors

    def _start(self, name: str, *, is_load: bool, call: int, now: int) -> None:
        end = now + self.to_clock(self.connector.remote[name].get("delay", 0))
        self.under_way.append(Transfer(name, is_load, call, end))
