"""What the store of all workers holds of a prompt, for routers that ask when a request comes."""

from dynosim.cluster.tier_stores import TierStores
from dynosim.records import packed
from dynosim.workload.extents import PrefixExtents


class SharedStore:
    """The tier that all workers share, by requests' prompts."""

    def __init__(self, stores: TierStores, extents: PrefixExtents) -> None:
        self._stores = stores
        self._extent_blocks: list[int] = extents.extent_blocks.tolist()
        self._path = packed(extents.path)
        self._offsets = packed(extents.path_offsets)

    def ranges_of(self, index: int) -> tuple[tuple[int, int], ...]:
        """The blocks of a prompt that are there by now: `(first, end)` each, ascending, apart."""
        cache = self._stores.of_all
        if cache is None:  # no worker has come yet
            return ()
        ranges: list[tuple[int, int]] = []
        before = 0
        for place in range(self._offsets[index], self._offsets[index + 1]):
            content = self._path[place]
            num_blocks = self._extent_blocks[content]
            extent = cache.get(content)
            if extent is not None and extent.num_stores == 0:
                first, end = before, before + min(extent.num_chunks, num_blocks)
                if ranges and ranges[-1][1] == first:
                    first = ranges.pop()[0]
                ranges.append((first, end))
            before += num_blocks
        return tuple(ranges)
