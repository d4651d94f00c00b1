"""Does one request fit: an engine whose cache cannot hold one of its context length does not start.

vLLM refuses that too: such a request would be preempted for ever.
"""

from dynosim.engine.spec import EngineSpec
from dynosim.errors import InfeasibleError


def require_room(spec: EngineSpec) -> None:
    """Refuse a cache that holds less than `max_model_len`.

    Raises: InfeasibleError naming the sizes and what to change.
    """
    blocks, size = spec.usable_blocks, spec.block_size
    require_room_for(spec.max_model_len, usable_blocks=blocks, block_size=size)


def require_room_for(
    max_model_len: int,
    *,
    usable_blocks: int,
    block_size: int,
    where: str = "engine.num_gpu_blocks",
    remedy: str = "give more blocks, or lower engine.max_model_len",
) -> None:
    """The same before there is a spec; `where` and `remedy` say what the blocks come from.

    Raises: InfeasibleError.
    """
    tokens = usable_blocks * block_size
    if tokens < max_model_len:
        raise InfeasibleError(
            f"{where}: {usable_blocks:,} usable blocks of {block_size} hold {tokens:,} tokens,"
            f" fewer than one request of max_model_len {max_model_len:,}; {remedy}"
        )
