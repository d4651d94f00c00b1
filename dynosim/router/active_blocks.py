"""Prompt blocks in use, by slot: blocks shared by several active requests of a slot count once."""

from collections.abc import Sequence

from dynosim.workers.ids import Slot


class ActiveBlocks:
    """Which keys active requests hold, and on which slots.

    `key_blocks[key]` is the number of blocks that a key stands for; without it every key is one
    block. `keys` of one request are distinct and lie on one path of the prefix tree.
    """

    def __init__(self, key_blocks: list[int] | None) -> None:
        self._key_blocks = key_blocks
        self._holders: dict[int, int] = {}  # key -> slots on which it is active
        self._further: list[dict[int, int]] = []  # by slot: key -> active requests but the first
        self.weights: list[dict[int, float]] = []  # by slot: keys that count less than whole

    def grow(self) -> None:
        """Make room for one more slot."""
        self._further.append({})
        self.weights.append({})

    def num_blocks(self, keys: Sequence[int]) -> int:
        """The blocks that keys stand for."""
        sizes = self._key_blocks
        return len(keys) if sizes is None else sum([sizes[key] for key in keys])

    def hold(self, slot: Slot, keys: Sequence[int]) -> tuple[float, int]:
        """Reference keys; returns by how much the slot's blocks grow, and the blocks named."""
        further, weights = self._further[slot], self.weights[slot]
        holders = self._holders
        sizes = self._key_blocks
        bit = 1 << slot
        grown = 0.0
        named = 0
        for key in keys:
            size = 1 if sizes is None else sizes[key]
            named += size
            slots = holders.get(key, 0)
            if slots & bit:
                further[key] = further.get(key, 0) + 1
                if weights and key in weights:  # no longer one request's own: counts in full
                    grown += (1 - weights.pop(key)) * size
            else:
                holders[key] = slots | bit
                grown += size
        return grown, named

    def let_go(self, slot: Slot, keys: Sequence[int]) -> float:
        """Drop references; returns by how much the slot's blocks shrink."""
        further, weights = self._further[slot], self.weights[slot]
        holders = self._holders
        sizes = self._key_blocks
        bit = 1 << slot
        shrunk = 0.0
        for key in keys:
            if key in further:
                further[key] -= 1
                if not further[key]:
                    del further[key]
                continue
            left = holders[key] ^ bit
            if left:
                holders[key] = left
            else:
                del holders[key]
            weight = weights.pop(key, 1.0) if weights else 1.0
            shrunk += weight * (1 if sizes is None else sizes[key])
        return shrunk

    def weigh(self, slot: Slot, keys: Sequence[int], fraction: float, grown: float) -> float:
        """Let keys that only one request uses count in part.

        Returns by how much the slot's blocks grow, added to `grown` key by key.
        """
        further, weights = self._further[slot], self.weights[slot]
        sizes = self._key_blocks
        for key in keys:
            if key not in further and fraction != weights.get(key, 1.0):
                size = 1 if sizes is None else sizes[key]
                grown += (fraction - weights.get(key, 1.0)) * size
                weights[key] = fraction
        return grown

    def shared_prefix(self, keys: Sequence[int]) -> list[tuple[int, int]]:
        """Slots where leading blocks of a prompt are active already, as (slots, blocks)."""
        holders = self._holders
        sizes = self._key_blocks
        classes: list[tuple[int, int]] = []
        alive = -1
        depth = 0
        for key in keys:
            still = alive & holders.get(key, 0)
            if still != alive:
                if depth:
                    classes.append((alive ^ still, depth))
                alive = still
                if not still:
                    return classes
            depth += 1 if sizes is None else sizes[key]
        if depth:
            classes.append((alive, depth))
        return classes
