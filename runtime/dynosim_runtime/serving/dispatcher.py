"""Everything behind the HTTP routes: requests in, generations out, over router, fleet and engines.

See `dynosim_runtime.requests.Generator`.
"""

import logging
import time
from collections.abc import Callable, Mapping

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.config.live import LiveConfig
from dynosim.router.decision import Decision
from dynosim.router.eligibility import Constraints
from dynosim.router.request import RoutingRequest
from dynosim.workers.ids import DpRank, WorkerId
from dynosim_runtime.card import WorkerCard
from dynosim_runtime.clients.base import KEEPING_FORM, TELLING_LOGPROBS, EngineClient
from dynosim_runtime.dialects.decoding import refuse
from dynosim_runtime.errors import ApiError, unavailable
from dynosim_runtime.requests import GenerateRequest, RequestRecord
from dynosim_runtime.serving.membership import Fleet
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.router import RouterService
from dynosim_runtime.serving.stream import LiveGeneration

HEARTBEAT_TOKENS = 512  # a long answer is mentioned to the router so often, lest it look stale

log = logging.getLogger(__name__)


def stopwatch() -> Callable[[], float]:
    """A clock that counts milliseconds from now and never goes back."""
    started = time.monotonic()
    return lambda: (time.monotonic() - started) * 1e3


class LiveGenerator:
    """Serves requests with the workers of a fleet; `clients` speak the engines' dialects.

    `fleet` must be set before the first request. `tracks_output` tells the router of every block
    that an answer fills; `write_record` gets the record of every request that ended.
    """

    fleet: Fleet

    def __init__(
        self,
        router: RouterService,
        clients: Mapping[str, EngineClient],
        live: LiveConfig,
        metrics: FrontendMetrics,
        now_ms: Callable[[], float],
        *,
        block_size: int,
        tracks_output: bool = False,
        write_record: Callable[[RequestRecord], None] = lambda record: None,
    ) -> None:
        self.router = router
        self.live = live
        self.metrics = metrics
        self.now_ms = now_ms
        self.block_size = block_size
        self.is_draining = False
        self._clients = clients
        self._report_tokens = block_size if tracks_output else HEARTBEAT_TOKENS
        self._write_record = write_record
        self._active: dict[str, LiveGeneration] = {}
        self._on_worker: dict[int, dict[str, LiveGeneration]] = {}

    @property
    def num_routing(self) -> int:
        """Requests that wait to be placed."""
        return len(self._active) - self.num_dispatched

    @property
    def num_dispatched(self) -> int:
        """Requests that a worker has in hand."""
        return sum(map(len, self._on_worker.values()))

    @property
    def num_active(self) -> int:
        """Requests that have come and have not ended."""
        return len(self._active)

    async def start(self, request: GenerateRequest) -> LiveGeneration:
        """See `Generator`."""
        if self.is_draining:
            raise unavailable("the frontend is draining: it is shutting down")
        if request.request_id in self._active:
            raise ApiError(400, f"request id {request.request_id!r} is in use", param="request_id")
        self._check_engines(request)
        record = RequestRecord(
            request_id=request.request_id,
            session_id=request.session_id,
            arrival_ms=self._arrival_ms(request),
            input_tokens=len(request.token_ids),
        )
        generation = LiveGeneration(self, request, record)
        self._active[request.request_id] = generation
        self.metrics.note_arrival(record.input_tokens)
        await generation.place()
        return generation

    def _check_engines(self, request: GenerateRequest) -> None:
        """Raises: ApiError 400 for what an engine of this fleet cannot do."""
        kinds = {card.engine for card in self.fleet.cards.values()}
        sampling = request.sampling
        for field, is_asked, able in (
            ("logprobs", sampling.logprobs is not None, TELLING_LOGPROBS),
            ("response_format", sampling.structured is not None, KEEPING_FORM),
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

    def _arrival_ms(self, request: GenerateRequest) -> float:
        """When the request had come in, before it was templated and tokenized."""
        now_ms = self.now_ms()
        if request.received_s is None:
            return now_ms
        return now_ms - (time.monotonic() - request.received_s) * 1e3

    def num_in_hand(self, worker_id: int) -> int:
        """Requests that a worker has in hand."""
        return len(self._on_worker.get(worker_id, ()))

    def lose_worker(self, worker_id: int) -> None:
        """A worker is gone: what it served moves on."""
        for generation in list(self._on_worker.pop(worker_id, {}).values()):
            generation.worker_lost()

    # ---- for generations -----------------------------------------------------------------------

    async def place(
        self,
        request: GenerateRequest,
        name: str,
        token_ids: list[int],
        allowed: frozenset[int] | None,
    ) -> Decision:
        """Ask the router for a worker for these tokens: the prompt, and what is there of an answer.

        Raises: RequestRefusedError.
        """
        local = local_hashes(token_ids, self.block_size, salt=request.cache_salt)
        expected = request.expected_output_tokens
        if expected is not None:
            expected = max(expected - (len(token_ids) - len(request.token_ids)), 1)
        constraints = None
        if request.worker_id is not None or allowed is not None:
            constraints = Constraints(
                None if allowed is None else frozenset(map(WorkerId, allowed)),
                None if request.worker_id is None else WorkerId(request.worker_id),
                None if request.dp_rank is None else DpRank(request.dp_rank),
            )
        return await self.router.place(
            RoutingRequest(
                name,
                len(token_ids),
                len(local),
                local,
                sequence_hashes(local),
                priority_jump=max(request.priority, 0),
                expected_output_tokens=expected,
                session_id=request.session_id,
                constraints=constraints,
                policy_family=request.policy_family,
            )
        )

    def no_worker(self, request: GenerateRequest) -> ApiError | None:
        """What a client is told where no worker may take its request; None: in the router's words.

        A worker or rank that there is not is the client's mistake; one that may be back is not.
        """
        absence, worker_id, rank = self.fleet.absence, request.worker_id, request.dp_rank
        if absence is not None:
            return unavailable(absence)
        if worker_id is None:
            return None
        if not self.fleet.knows(worker_id):
            return _refused_pin("worker_id", f"there is no worker {worker_id}")
        card = self.fleet.cards.get(worker_id)
        if card is None or card.is_draining:
            return unavailable(f"worker {worker_id} takes nothing new at the moment")
        if rank is not None and rank >= card.dp_size:
            return _refused_pin("dp_rank", f"the worker's ranks are 0 to {card.dp_size - 1}")
        return None

    def client_for(self, card: WorkerCard) -> EngineClient:
        """Who speaks a worker's dialect."""
        return self._clients[card.engine]

    def attach(self, generation: LiveGeneration, worker_id: int) -> None:
        """A generation is served by this worker now."""
        self._on_worker.setdefault(worker_id, {})[generation.request.request_id] = generation

    def detach(self, generation: LiveGeneration) -> None:
        """A generation is served by no worker now."""
        worker_id = generation.record.decode_worker_id
        if worker_id is not None:
            self._on_worker.get(worker_id, {}).pop(generation.request.request_id, None)

    def note_progress(self, placed_as: str, before: int, num_tokens: int) -> None:
        """A placed request got tokens behind what it was placed with: `num_tokens`, after `before`.

        The router hears of it now and then.
        """
        if num_tokens // self._report_tokens != before // self._report_tokens:
            self.router.output_tokens(placed_as, num_tokens)

    def note_end(self, generation: LiveGeneration) -> None:
        """A generation ended, however it ended."""
        self._active.pop(generation.request.request_id, None)
        record = generation.record
        self.metrics.note_end(record)
        try:
            self._write_record(record)
        except OSError as error:  # a full disk must not end anybody's stream
            log.error("the record of request %s is lost: %s", record.request_id, error)


def _refused_pin(field: str, what: str) -> ApiError:
    return refuse(f"nvext.{field}", what, "refused")
