"""What the router knows of a request: everything but its true output length."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields

from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import CostSpec


@dataclass(slots=True, init=False)
class RoutingRequest:
    """One request to be placed. Not to be changed once a router has it.

    `blocks` names the prompt's complete blocks as the index does (local hashes; extents in the
    twin), `keys` as the load tracker does (sequence hashes; extents in the twin). `num_blocks` is
    the number of complete blocks; those beyond what `keys` stand for are nobody else's.
    `shared_ranges` are those of a store that all workers share, see `dynosim.router.shared_cache`.
    """

    request_id: Hashable
    input_tokens: int
    num_blocks: int
    blocks: Sequence[int]
    keys: Sequence[int]
    priority_jump: float  # seconds that it counts as having come earlier
    strict_priority: int
    expected_output_tokens: int | None  # the client's hint
    session_id: str | None
    constraints: Constraints | None
    policy_family: str | None
    overrides: CostSpec | None
    shared_ranges: Sequence[tuple[int, int]]

    def __init__(
        self,
        request_id: Hashable,
        input_tokens: int,
        num_blocks: int,
        blocks: Sequence[int] = (),
        keys: Sequence[int] = (),
        priority_jump: float = 0.0,
        strict_priority: int = 0,
        expected_output_tokens: int | None = None,
        session_id: str | None = None,
        constraints: Constraints | None = None,
        policy_family: str | None = None,
        overrides: CostSpec | None = None,
        shared_ranges: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.request_id = request_id
        self.input_tokens = input_tokens
        self.num_blocks = num_blocks
        self.blocks = blocks
        self.keys = keys
        self.priority_jump = priority_jump
        self.strict_priority = strict_priority
        self.expected_output_tokens = expected_output_tokens
        self.session_id = session_id
        self.constraints = constraints
        self.policy_family = policy_family
        self.overrides = overrides
        self.shared_ranges = shared_ranges

    def __reduce__(self) -> tuple[type["RoutingRequest"], tuple[object, ...]]:
        """How to copy it, in either build."""
        return RoutingRequest, tuple([getattr(self, field.name) for field in fields(self)])
