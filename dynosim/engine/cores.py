"""The engines there are: what makes the core of each kind."""

from typing import Protocol

from dynosim.engine.core import EngineCore
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler


class CoreFactory(Protocol):
    """Makes the core of one engine.

    `extent_blocks` are the sizes of the extents that request paths name (None: they are single
    blocks). `keep_rows` asks for plans that list every request; `names_emitting` for plans that
    name who yields a token; `publish_events` for KV events, with `announced` only about the extents
    flagged in it; `retains` for a cache that heeds what requests say of their blocks.
    """

    def __call__(
        self,
        spec: EngineSpec,
        extent_blocks: list[int] | None = None,
        *,
        keep_rows: bool = False,
        names_emitting: bool = False,
        publish_events: bool = False,
        announced: list[bool] | None = None,
        retains: bool = False,
    ) -> EngineCore:
        """A core without requests, its cache empty."""
        ...


Core = VllmScheduler | EngineCore
"""Any core. Ours are named beside the protocol, so that a compiler calls them directly."""

CORES: dict[str, CoreFactory] = {"vllm": VllmScheduler}
"""By `EngineSpec.kind`."""
