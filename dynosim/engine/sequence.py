"""One request inside an engine: its lengths, its place in the prefix tree, its progress."""

from typing import Final

from dynosim.blocks.retention import BlockClaims
from dynosim.engine.block_pool import Extent
from dynosim.engine.host_cache import TierProgress

WAITING: Final = 0
PREFILLING: Final = 1  # holds a seat, known tokens left to compute
DECODING: Final = 2  # holds a seat, one token a step
DRAINING: Final = 3  # holds a seat, last token scheduled but not yet delivered
FINISHED: Final = 4
LOADING: Final = 5  # holds blocks and no seat: KV comes from elsewhere, or has just come
SPECULATING: Final = 6  # holds a seat, decodes with drafts: as many tokens a step as are accepted


class Sequence:
    """Mutable state of one request in one engine.

    `path` names the extents that hold the first `path_blocks` full blocks of the request's tokens
    in the tree of shared prefixes, root first; blocks beyond them belong to nobody else.

    A decoding sequence advances one token in every step, so its progress is not stored but follows
    from the engine's step counter: `num_computed = anchor + step`. The other states store it.

    `remote_tokens`, `is_sent`, `is_prefetch`, `decodes_last` and `claims` are for its owner to set
    before an engine gets it.
    """

    __slots__ = (
        "anchor",
        "arrival_ms",
        "cached_tokens",
        "claims",
        "covered_blocks",
        "decodes_last",
        "drafts",
        "external_tokens",
        "finish_step",
        "generated_tokens",
        "held",
        "in_flight",
        "index",
        "is_prefetch",
        "is_sent",
        "last_chunk_step",
        "load_step",
        "num_computed",
        "order",
        "output_tokens",
        "own",
        "own_published",
        "path",
        "path_blocks",
        "preemptions",
        "priority",
        "prompt_tokens",
        "registration_lag",
        "remote_tokens",
        "request_id",
        "reserved_tokens",
        "state",
        "tier_progress",
    )

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        output_tokens: int,
        path: list[int],
        path_blocks: int,
        arrival_ms: float = 0.0,
        priority: int = 0,
        request_id: str = "",
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens  # tokens it will produce, model length respected
        self.path = path
        self.path_blocks = path_blocks
        self.arrival_ms = arrival_ms
        self.priority = priority
        self.state = WAITING
        self.num_computed = 0  # while prefilling or speculating, drafts under way included
        self.generated_tokens = 0  # delivered, up to the last (re)admission or preemption
        self.drafts = 0  # while speculating: offered for its next step
        self.anchor = 0  # while decoding
        self.finish_step = 0  # first step it is not part of any more
        self.order = -1  # admission number: the running list is sorted by it
        self.held: list[Extent] = []  # along the path, root first
        self.covered_blocks = 0  # full blocks of `held` this sequence has computed or hit
        self.own: Extent | None = None  # blocks beyond the path that were cached at a release
        self.own_published = 0  # of those, blocks announced as stored
        self.in_flight = 0  # scheduled tokens not yet delivered (asynchronous scheduling)
        self.registration_lag = 0  # computed tokens whose ids were unknown when last scheduled
        self.cached_tokens = -1  # prefix hit of the first admission, -1 before it
        self.external_tokens = 0  # beside them, those whose KV was to come from elsewhere
        self.remote_tokens = 0  # prompt tokens whose KV is elsewhere; 0 once that was asked for
        self.decodes_last = False  # one token left of its prompt takes the time of a decode
        self.claims: BlockClaims | None = None  # what it says of its blocks; None: nothing
        self.is_prefetch = False  # no request: its KV is to be on the device, and that is all
        self.is_sent = False  # its blocks stay held after its end, until they have been sent
        self.reserved_tokens = 0  # it got blocks for so many, by a load or for drafts, valid or not
        self.load_step = 0  # the step whose planning started the load
        self.last_chunk_step = -1  # the last step in which it computed known tokens
        self.preemptions = 0
        self.tier_progress: TierProgress | None = None  # with the tier below the device

    @property
    def known_tokens(self) -> int:
        """Prompt and delivered tokens; valid while not decoding."""
        return self.prompt_tokens + self.generated_tokens

    def restart(self, num_tokens: int) -> None:
        """Forget the engine it was in, which is gone; it has got `num_tokens` tokens there."""
        self.state = WAITING
        self.num_computed = 0
        self.generated_tokens = num_tokens
        self.drafts = 0
        self.finish_step = -1
        self.order = -1
        self.held = []
        self.covered_blocks = 0
        self.own = None
        self.own_published = 0
        self.in_flight = 0
        self.registration_lag = 0
        self.reserved_tokens = 0
        self.last_chunk_step = -1
        self.tier_progress = None
