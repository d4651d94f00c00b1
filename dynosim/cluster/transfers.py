"""The links of a cluster: who sends KV to whom, and when it has arrived.

Every worker sends and receives over links of its own; workers in one place (a node, say) may share
an uplink to others. A transfer crosses the sender's link, both uplinks where the places differ, and
the receiver's link, at one rate (`dynosim.memory.network`).
"""

from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import ClusterSpec, PoolSpec, TransferSpec
from dynosim.engine.sequence import Sequence
from dynosim.memory.kv_transfer import HandoffCost, SideLayout, moved_tokens
from dynosim.memory.network import FairNetwork, Transfer
from dynosim.records import LinkLog

NOBODY: list[Sequence] = []  # never changed


class Transfers:
    """The station between prefill and decode workers; what arrives waits to be taken."""

    def __init__(self, spec: TransferSpec, cluster: ClusterSpec) -> None:
        prefill, decode = cluster.pools
        self.next_ms = float("inf")
        self.arrived: list[Transfer] = []
        self.cost = HandoffCost(
            link=spec.link,
            geometry=spec.geometry,
            prefill=_layout(prefill),
            decode=_layout(decode),
            exposed_share=spec.exposed_share,
        )
        self._spec = spec
        self._block_size = decode.block_size
        self._network = FairNetwork()
        self._out: dict[int, int] = {}  # by worker id: the resource that it sends through
        self._in: dict[int, int] = {}
        self._uplinks: dict[tuple[str, str], tuple[int, int]] = {}  # by place: out, in
        # Of the pairs of workers that have shaken hands, the way from the one to the other.
        self._paths: dict[tuple[int, int], tuple[int, ...]] = {}
        self._num_transfers = 0
        self._num_cancelled = 0

    def begin(
        self,
        source: Worker,
        target: Worker,
        prompt_tokens: int,
        held_tokens: int,
        compute_ms: float,
        starts_ms: float,
        now_ms: float,
    ) -> tuple[Transfer, float, int]:
        """Move the KV of a prompt, of which the target holds `held_tokens`, from `starts_ms` on.

        Returns also that time and the bytes.
        """
        pair = (source.worker_id, target.worker_id)
        num_tokens = moved_tokens(self._spec.moves, prompt_tokens, held_tokens, self._block_size)
        path = self._paths.get(pair)
        handoff = self.cost.handoff(num_tokens, compute_ms, is_first=path is None)
        if path is None:
            path = self._paths[pair] = self._path(source, target)
        network = self._network
        if handoff.hidden_bytes:
            network.add_hidden(handoff.hidden_bytes)
        if starts_ms < now_ms:
            starts_ms = now_ms
        transfer = network.begin(path, handoff.exposed_bytes, starts_ms + handoff.setup_ms, now_ms)
        self._num_transfers += 1
        self.next_ms = network.next_ms
        return transfer, starts_ms, handoff.wire_bytes

    def cancel(self, transfer: Transfer, now_ms: float) -> None:
        """Stop a transfer; what has flowed is lost."""
        if transfer in self.arrived:
            self.arrived.remove(transfer)
            return
        self._network.cancel(transfer, now_ms)
        self._num_cancelled += 1
        self.next_ms = self._network.next_ms

    # ---- as a station --------------------------------------------------------------------------

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Requests do not come here by themselves; see `begin`."""
        raise NotImplementedError

    def start(self, now_ms: float) -> None:
        """Nothing waits here."""

    def complete(self, now_ms: float) -> list[Sequence]:
        """Take what has arrived into `arrived`; no request is over by that."""
        self.arrived += self._network.complete(now_ms)
        self.next_ms = self._network.next_ms
        return NOBODY

    # ---- the end -------------------------------------------------------------------------------

    def log(self) -> LinkLog:
        """What went over the links."""
        network = self._network
        return LinkLog(
            bytes_sent=network.bytes_sent,
            bytes_received=network.bytes_received,
            bytes_lost=network.bytes_lost,
            bytes_in_flight=network.bytes_in_flight,
            num_transfers=self._num_transfers,
            num_cancelled=self._num_cancelled,
        )

    # ---- inside --------------------------------------------------------------------------------

    def _path(self, source: Worker, target: Worker) -> tuple[int, ...]:
        """The capacities that a transfer takes part of."""
        if not self._spec.uplinks:
            return self._link(self._out, source), self._link(self._in, target)
        path = [self._link(self._out, source)]
        ours, theirs = source.card.topology, target.card.topology
        for domain, gb_s in self._spec.uplinks.items():
            if ours[domain] != theirs[domain]:
                path.append(self._uplink(domain, ours[domain], gb_s)[0])
                path.append(self._uplink(domain, theirs[domain], gb_s)[1])
        path.append(self._link(self._in, target))
        return tuple(path)

    def _link(self, links: dict[int, int], worker: Worker) -> int:
        found = links.get(worker.worker_id)
        if found is None:
            gb_s = self._spec.link.worker_gb_s(worker.pool.gpus_per_worker)
            found = links[worker.worker_id] = self._network.add_resource(gb_s)
        return found

    def _uplink(self, domain: str, value: str, gb_s: float) -> tuple[int, int]:
        found = self._uplinks.get((domain, value))
        if found is None:
            add = self._network.add_resource
            found = self._uplinks[domain, value] = (add(gb_s), add(gb_s))
        return found


def _layout(pool: PoolSpec) -> SideLayout:
    return SideLayout(tensor_parallel=pool.tensor_parallel, block_size=pool.block_size)
