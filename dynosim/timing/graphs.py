"""CUDA graphs: an engine has them for some token counts, and computes other batches as the next."""

from bisect import bisect_left
from typing import Final

_FINER_UNTIL: Final = 256
_LARGEST: Final = 512


def padded_tokens(tokens: int, graph_sizes: tuple[int, ...]) -> int:
    """Tokens that the engine computes for a batch: the next graph's size, if there is one."""
    index = bisect_left(graph_sizes, tokens)
    return graph_sizes[index] if index < len(graph_sizes) else tokens


def vllm_graph_sizes(max_num_seqs: int, *, coarse: bool = True) -> tuple[int, ...]:
    """Batch sizes that vLLM captures CUDA graphs for by default.

    1, 2, 4, multiples of 8 up to the smaller of 512 and twice `max_num_seqs`; `coarse`: from 256 on
    only multiples of 16. Source: vLLM v0.19 `VllmConfig._set_cudagraph_sizes`, and for versions
    before 0.11.1, which are not coarse, the same place in v0.10.
    """
    largest = min(_LARGEST, 2 * max_num_seqs)
    sizes = [1, 2, 4, *range(8, _FINER_UNTIL, 8)]
    sizes += range(_FINER_UNTIL, _LARGEST + 1, 16 if coarse else 8)
    return tuple(size for size in sizes if size <= largest)
