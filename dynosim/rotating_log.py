"""The log of a router that runs for ever: the last files only, each of which replays on its own."""

from pathlib import Path

from dynosim.indexer.make import IndexSpec
from dynosim.router.log import LoggedRouter
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.settings import RouterSettings


class RotatingLog:
    """Keeps a router's last inputs and decisions in `folder`, as `router-000001.jsonl`, ...

    At most `max_files` files of `max_bytes` each are kept. Call `maintain` between the router's
    inputs, and every second or so when there are none: it writes out what is older than
    `flush_interval_s` and does a part of what is to be done to begin a new file. Rotation changes
    nothing in the router, except that a placement policy without `state` and `restore` begins anew.

    Raises: ConfigError if the folder cannot be written or a limit makes no sense.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int = 64 << 20,
        max_files: int = 4,
        flush_interval_s: float = 1.0,
    ) -> None:
        raise NotImplementedError

    def open(
        self,
        settings: RouterSettings,
        index: IndexSpec,
        *,
        policy: str | None = None,
        estimator: PrefillEstimator | None = None,
    ) -> LoggedRouter:
        """The router, empty, whose inputs are logged from now on; `policy` is `package.module:Class`."""
        raise NotImplementedError

    def maintain(self) -> None:
        """Write out what has waited for long, and go on with a rotation if one is due."""
        raise NotImplementedError

    def flush(self) -> None:
        """Hand everything logged so far to the operating system."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the log; the router goes on unlogged."""
        raise NotImplementedError
