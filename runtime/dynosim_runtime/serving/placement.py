"""Where a request goes, and what is reported of it to the router from there on.

The router decides by its own records; which card is behind a decision, who may be asked a second
time and what a client is told when nobody may take its request is known here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.router.decision import Decision
from dynosim.router.eligibility import Constraints
from dynosim.router.request import RoutingRequest
from dynosim.router.wishes import overridden
from dynosim.workers.ids import DpRank, WorkerId
from dynosim_runtime.card import LiveCard
from dynosim_runtime.clients.base import (
    KEEPING_FORM,
    PINNING,
    TELLING_LOGPROBS,
    EngineClient,
)
from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.dialects.nvext import PIN_FIELD
from dynosim_runtime.errors import ApiError, unavailable
from dynosim_runtime.requests import GenerateRequest
from dynosim_runtime.serving.in_flight import InFlight, MovableStream
from dynosim_runtime.serving.member import Stay
from dynosim_runtime.serving.membership import Membership
from dynosim_runtime.serving.router import RouterService

HEARTBEAT_TOKENS = 512  # a long answer is mentioned to the router so often, lest it look stale


@dataclass(frozen=True, slots=True)
class PlacedAt:
    """What a request was given."""

    decision: Decision
    card: LiveCard | None  # None: the worker has left since
    stay: Stay


class LivePlacement:
    """Places requests on the members; `clients` speak the engines' dialects.

    `tracks_output` tells the router of every block that an answer fills. With `ignores_pins` a
    request to keep its prompt is served also where the engine cannot.
    """

    def __init__(
        self,
        router: RouterService,
        members: Membership,
        in_flight: InFlight,
        clients: Mapping[str, EngineClient],
        *,
        block_size: int,
        tracks_output: bool = False,
        ignores_pins: bool = False,
    ) -> None:
        self.router = router
        self.members = members
        self.in_flight = in_flight
        self._clients = clients
        self._ignores_pins = ignores_pins
        self._block_size = block_size
        self._report_tokens = block_size if tracks_output else HEARTBEAT_TOKENS

    def check_engines(self, request: GenerateRequest) -> None:
        """Raises: ApiError 400 for what an engine of the members cannot do."""
        kinds = {card.engine for card in self.members.cards.values()}
        sampling = request.sampling
        for field, is_asked, able in (
            ("logprobs", sampling.logprobs is not None, TELLING_LOGPROBS),
            ("response_format", sampling.structured is not None, KEEPING_FORM),
            (PIN_FIELD, request.must_pin and not self._ignores_pins, PINNING),
        ):
            unable = sorted(kinds - able)
            if is_asked and unable:
                raise ApiError(
                    400,
                    f"{field}: not supported by this server, whose engine is {unable[0]} "
                    f"(engines that can: {', '.join(sorted(able))})",
                    param=field,
                    code="unsupported_parameter",
                )

    async def place(
        self,
        request: GenerateRequest,
        name: str,
        token_ids: list[int],
        allowed: frozenset[int] | None,
        near: Constraints | None = None,
    ) -> PlacedAt:
        """Ask the router for a worker for these tokens: the prompt, and what is there of an answer.

        `near`: which places its prefill worker leaves. Raises: RequestRefusedError.
        """
        local = local_hashes(token_ids, self._block_size, salt=request.cache_salt)
        expected = request.expected_output_tokens
        if expected is not None:
            expected = max(expected - (len(token_ids) - len(request.token_ids)), 1)
        decision = await self.router.place(
            RoutingRequest(
                name,
                len(token_ids),
                len(local),
                local,
                sequence_hashes(local),
                priority_jump=max(request.priority, 0),
                expected_output_tokens=expected,
                session_id=request.session_id,
                constraints=_constraints(request, allowed, near),
                policy_family=request.policy_family,
                overrides=overridden(self.router.router.settings.cost, request.overrides),
            )
        )
        worker_id = decision.worker_id
        return PlacedAt(decision, self.members.card_of(worker_id), self.members.stay_of(worker_id))

    def no_worker(self, request: GenerateRequest) -> ApiError | None:
        """What a client is told where no worker may take its request; None: in the router's words.

        A worker or rank that there is not is the client's mistake; one that may be back is not.
        """
        members, worker_id, rank = self.members, request.worker_id, request.dp_rank
        absence = members.absence
        if absence is not None:
            return unavailable(absence)
        if worker_id is None:
            return None
        if not members.knows(worker_id):
            return _refused_pin("worker_id", f"there is no worker {worker_id}")
        card = members.card_of(worker_id)
        if card is None or not members.is_ready(worker_id):
            return unavailable(f"worker {worker_id} takes nothing new at the moment")
        if rank is not None and rank >= card.dp_size:
            return _refused_pin("dp_rank", f"the worker's ranks are 0 to {card.dp_size - 1}")
        return None

    def untried(self, failed: set[Stay]) -> frozenset[int]:
        """Workers, other than in the stays where it has failed already."""
        members = self.members
        return frozenset(w for w in members.cards if members.stay_of(w) not in failed)

    def client_for(self, card: LiveCard) -> EngineClient:
        """Who speaks a worker's dialect."""
        return self._clients[card.engine]

    def attach(self, place: PlacedAt, request_id: str, stream: MovableStream) -> None:
        """A request's stream is on the worker it was placed on."""
        self.in_flight.attach(place.decision.worker_id, request_id, stream)

    def detach(self, place: PlacedAt | None, request_id: str, placed_as: str) -> None:
        """A request's stream is over, or is to be placed anew; None: it had no place yet."""
        if place is not None:
            self.in_flight.detach(place.decision.worker_id, request_id)
        self.router.end(placed_as)

    def blame(self, worker_id: int, session_id: str | None) -> None:
        """A stream broke: see whether its worker lives, and bind its session to it no longer."""
        self.members.suspect(worker_id)
        if session_id is not None:
            self.router.unbind_session(session_id)

    def note_progress(self, placed_as: str, before: int, num_tokens: int) -> None:
        """A placed request got tokens behind what it was placed with: `num_tokens`, after `before`.

        The router is informed now and then.
        """
        if num_tokens // self._report_tokens != before // self._report_tokens:
            self.router.output_tokens(placed_as, num_tokens)


def _constraints(
    request: GenerateRequest, allowed: frozenset[int] | None, near: Constraints | None
) -> Constraints | None:
    """Where it may go, and where it would rather go; None: anywhere."""
    required, preferred = frozenset(request.required_taints), request.preferred_taints
    if near is not None:
        required |= near.required_taints
        preferred = {**near.preferred_taints, **preferred}
    if request.worker_id is None and allowed is None and not required and not preferred:
        return None
    return Constraints(
        None if allowed is None else frozenset(map(WorkerId, allowed)),
        None if request.worker_id is None else WorkerId(request.worker_id),
        None if request.dp_rank is None else DpRank(request.dp_rank),
        required_taints=required,
        preferred_taints=preferred,
    )


def _refused_pin(field: str, what: str) -> ApiError:
    return refuse(f"nvext.{field}", what, "refused")
