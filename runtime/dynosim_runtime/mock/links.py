"""What a handoff costs between the workers of a plan, and the links of one decode worker.

Each decode worker is a process of its own and knows its own traffic only: what it receives, and
what of a prefill worker's sending goes to it. Where several decode workers read from one prefill
worker at once, they do not share its link; nor do they share uplinks of a place.
"""

from dynosim.build.disagg import kv_geometry, link_of
from dynosim.config import RunConfig
from dynosim.memory.kv_transfer import HandoffCost, Moved, SideLayout, moved_tokens
from dynosim.memory.network import FairNetwork, Transfer


def handoff_cost(plan: RunConfig) -> HandoffCost:
    """Between the pools of a disaggregated plan.

    Raises: ConfigError if the model's cache is not known, or a figure of the link is impossible.
    """
    transfer = plan.cluster.transfer
    assert transfer is not None, "checked with the plan"
    prefill, decode = (part.engine for part in plan.pools())
    return HandoffCost(
        link=link_of(transfer),
        geometry=kv_geometry(plan),
        prefill=SideLayout(tensor_parallel=prefill.tensor_parallel, block_size=prefill.block_size),
        decode=SideLayout(tensor_parallel=decode.tensor_parallel, block_size=decode.block_size),
        exposed_share=transfer.exposed_share,
    )


class IngressLinks:
    """The links of a decode worker, in its engine's time."""

    def __init__(self, cost: HandoffCost, moves: Moved) -> None:
        self.cost = cost
        self.network = FairNetwork()
        self._moves = moves
        self._ingress = self.network.add_resource(
            cost.link.worker_gb_s(cost.decode.tensor_parallel)
        )
        self._egress: dict[str, int] = {}  # by prefill worker, for the part that comes here

    def begin(
        self,
        source: str,
        prompt_tokens: int,
        held_tokens: int,
        *,
        compute_ms: float,
        start_ms: float,
        now_ms: float,
    ) -> Transfer:
        """KV of a prompt comes, of which `held_tokens` are here; the pair's first takes longer."""
        is_first = source not in self._egress
        if is_first:
            gb_s = self.cost.link.worker_gb_s(self.cost.prefill.tensor_parallel)
            self._egress[source] = self.network.add_resource(gb_s)
        block_size = self.cost.decode.block_size
        tokens = moved_tokens(self._moves, prompt_tokens, held_tokens, block_size)
        handoff = self.cost.handoff(tokens, compute_ms, is_first=is_first)
        self.network.add_hidden(handoff.hidden_bytes)
        return self.network.begin(
            (self._egress[source], self._ingress),
            handoff.exposed_bytes,
            max(start_ms, now_ms) + handoff.setup_ms,
            now_ms,
        )
