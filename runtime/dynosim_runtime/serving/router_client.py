"""The router as a Python object, for strategies of one's own over a live deployment.

    async with RouterClient(load_run("run.yaml"), discovery="file:/tmp/workers") as router:
        worker_id, dp_rank, overlap = await router.best_worker(token_ids)
        async for delta in router.generate(token_ids, model="qwen", worker_id=worker_id):
            ...

It is a frontend without a server: its own router, which follows the workers' KV events and knows
the requests that it has placed, and engines' clients. Names are those of Dynamo's `KvRouter`.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.router.decision import Refusal
from dynosim.router.inputs import AskBest, AskLoads, Best, Loads
from dynosim.router.knobs import CostSpec
from dynosim.router.wishes import overridden
from dynosim.workers.wishes import Overrides, WishError, read_overrides
from dynosim_runtime.config import check_live, served_model_name
from dynosim_runtime.discovery.make import discovery_spec, make_discovery
from dynosim_runtime.errors import LiveError
from dynosim_runtime.requests import GenerateRequest, Sampling, TokenDelta
from dynosim_runtime.serving.dispatcher import stopwatch
from dynosim_runtime.serving.make_router import LiveRouting
from dynosim_runtime.serving.metrics import FrontendMetrics
from dynosim_runtime.serving.wiring import Wired, wired

DEFAULT_MAX_TOKENS = 16
POLL_S = 0.02


class RouterClient:
    """A plan's router over the workers that `discovery` shows; the plan's own place if not given.

    Enter it once; with `out` the router's log goes there, for `dynosim replay-log`.
    """

    def __init__(
        self,
        plan: RunConfig,
        *,
        discovery: str | None = None,
        model: str | None = None,
        out: Path | None = None,
    ) -> None:
        """`model` is the name that the workers serve; None: as the plan has it.

        Raises: ConfigError for a plan or a discovery that cannot be.
        """
        check_live(plan)
        self._live = plan.live
        self._discovery = make_discovery(discovery or discovery_spec(plan.live), plan.live.lease_s)
        self._model = served_model_name(plan, None) if model is None else model
        self._routing = LiveRouting(plan, out)
        self._now_ms = stopwatch()
        self._stack = AsyncExitStack()
        self._parts: Wired | None = None

    async def __aenter__(self) -> Self:
        self._parts = await self._stack.enter_async_context(
            wired(
                self._routing,
                self._discovery,
                self._live,
                model=self._model,
                metrics=FrontendMetrics(namespace=self._live.metrics_namespace, model=self._model),
                now_ms=self._now_ms,
                on_close=self._routing.close,
            )
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._parts = None
        await self._stack.aclose()

    @property
    def worker_ids(self) -> list[int]:
        """The workers that take requests now."""
        members = self._wired.members
        return [worker_id for worker_id in members.cards if members.is_ready(worker_id)]

    async def wait_for_workers(self, number: int = 1, timeout_s: float = 30.0) -> None:
        """Return once so many workers take requests. Raises: LiveError if they do not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.worker_ids) < number:
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise LiveError(
                f"{len(self.worker_ids)} of {number} workers within {timeout_s:g} s"
            ) from None

    # ---- asking --------------------------------------------------------------------------------

    async def best_worker(
        self,
        token_ids: Sequence[int],
        router_config_override: Mapping[str, object] | None = None,
        request_id: str | None = None,
        *,
        update_states: bool | None = None,
    ) -> Best:
        """(worker, data-parallel rank, overlapping blocks): where a prompt would go now.

        With a `request_id` it counts as placed there, until `free`; `mark_prefill_complete` tells
        that its prompt is done. `update_states=False` only asks, whatever it is called; guesses of
        an index without events are brought up to date with the states (Dynamo's `update_indexer`).
        Raises: RequestRefusedError; ConfigError for an override that cannot be.
        """
        updates = request_id is not None if update_states is None else update_states
        given = AskBest(
            self._now_ms(),
            list(token_ids),
            request_id,
            updates,
            self._cost(_read(router_config_override)),
        )
        return self._ask(given)  # type: ignore[no-any-return]

    async def get_potential_loads(self, token_ids: Sequence[int]) -> Loads:
        """What each candidate would have in flight with this prompt.

        Raises: RequestRefusedError.
        """
        return self._ask(AskLoads(self._now_ms(), list(token_ids)))  # type: ignore[no-any-return]

    async def mark_prefill_complete(self, request_id: str) -> None:
        """The first token of a request that `best_worker` has placed was produced."""
        self._wired.router.first_token(request_id)

    async def free(self, request_id: str) -> None:
        """A request that `best_worker` has placed is over."""
        self._wired.router.end(request_id)

    # ---- serving -------------------------------------------------------------------------------

    async def generate(
        self,
        token_ids: Sequence[int],
        model: str | None = None,
        worker_id: int | None = None,
        dp_rank: int | None = None,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        router_config_override: Mapping[str, object] | None = None,
        request_id: str | None = None,
        **more: Any,
    ) -> AsyncIterator[TokenDelta]:
        """Serve a prompt, on `worker_id` if given, else where the router says; its tokens come.

        `sampling` says all of how tokens are picked, `max_tokens` included. `more` are further
        fields of `GenerateRequest`, such as `required_taints`. Left early, the request is
        cancelled. Raises: ApiError as a client of a frontend is told; ConfigError for an override,
        a model or a field that cannot be.
        """
        if model is not None and model != self._model:
            raise ConfigError(f"model {model!r}: the workers serve {self._model!r}")
        unknown = sorted(set(more) - set(GenerateRequest.__struct_fields__))
        if unknown:
            raise ConfigError(f"generate: unknown field {unknown[0]!r} of a request")
        request = GenerateRequest(
            request_id=uuid.uuid4().hex if request_id is None else request_id,
            model=self._model,
            token_ids=list(token_ids),
            sampling=Sampling(max_tokens=max_tokens) if sampling is None else sampling,
            worker_id=worker_id,
            dp_rank=dp_rank,
            overrides=_read(router_config_override),
            **more,
        )
        stream = await self._wired.dispatcher.start(request)
        try:
            async for delta in stream:
                yield delta
        finally:
            await stream.aclose()

    # ---- inside --------------------------------------------------------------------------------

    @property
    def _wired(self) -> Wired:
        if self._parts is None:
            raise LiveError("the router client is not open: use it inside of `async with`")
        return self._parts

    def _cost(self, overrides: Overrides) -> CostSpec | None:
        return overridden(self._wired.router.router.settings.cost, overrides)

    def _ask(self, given: AskBest | AskLoads) -> Any:
        outcome = self._wired.router.ask(given)
        if isinstance(outcome, Refusal):
            raise outcome.error
        return outcome


def _read(given: Mapping[str, object] | None) -> Overrides:
    try:
        return read_overrides(given or {})
    except WishError as error:
        raise ConfigError(f"router_config_override.{error.key}: {error.message}") from None
