"""The mock worker: our engine core in real time behind a server that speaks vLLM's dialect."""

from dataclasses import dataclass

from dynosim.config.schema import RunConfig
from dynosim_runtime.card import EventSource


@dataclass(frozen=True, slots=True, kw_only=True)
class MockEndpoint:
    """Where a mock worker serves, and what its card says of it."""

    url: str  # http://HOST:PORT
    model: str  # the name that clients use
    events: tuple[EventSource, ...]  # one, or none without prefix caching
    block_size: int
    total_kv_blocks: int  # that can hold KV
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int


class MockWorker:
    """One simulated engine with its HTTP server and its KV events, in the running event loop.

        worker = MockWorker(config, name="worker-0", port=0, speedup=10.0)
        endpoint = await worker.start()
        ...  # register the card made of `endpoint`; wait for SIGTERM
        await worker.stop(config.live.drain_timeout_s)

    It installs no signal handlers and registers nowhere; that is its caller's business.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        name: str = "worker-0",
        host: str = "127.0.0.1",
        port: int = 0,
        speedup: float = 1.0,
        model: str | None = None,
    ) -> None:
        """Prepare the engine that `config` describes.

        `port` 0 is any free one. Steps take `speedup` times less than the step times say. `model`
        is the name that clients use; None: `live.served_model_name`, the plan's model, or `mock`.

        Raises: ConfigError, InfeasibleError as `dynosim.runner.prepare` does.
        """
        raise NotImplementedError

    async def start(self) -> MockEndpoint:
        """Serve; returns once requests are answered.

        Raises: LiveError if a port is taken or `start` was called before.
        """
        raise NotImplementedError

    async def stop(self, drain_s: float) -> bool:
        """Refuse new requests (503), finish those under way for up to `drain_s`, and close.

        Returns whether all finished; what did not is cut off.
        """
        raise NotImplementedError
