"""A radix tree with one node per block: the plain exact index.

A node stands for a block behind a certain prefix; it knows the set of workers that hold it. Per
worker a table leads from the engine's block hashes to nodes, so that events need no search.
"""

from collections.abc import Iterator, Sequence

from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.base import (
    BlockEvent,
    Removed,
    Stored,
    is_elsewhere,
    sequence_names,
    spare_names,
)


class Node:
    """One block after one prefix."""

    __slots__ = ("children", "local", "parent", "workers")

    def __init__(self, parent: "Node | None", local: int) -> None:
        self.parent = parent
        self.local = local
        self.workers = 0
        self.children: dict[int, Node] = {}


class RadixIndex:
    """Exact prefix index, block by block.

    Should a worker use a block hash again for another block, or another hash for the same block,
    the newest counts.
    """

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self._root = Node(None, 0)
        self._nodes: dict[int, dict[int, Node]] = {}  # worker -> block hash -> node

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account; slower tiers are nothing to it."""
        if is_elsewhere(event):
            return
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            self._remove(worker, event.block_hashes)
        else:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` are local hashes."""
        counters = self.counters
        counters.queries += 1
        counters.query_blocks += len(blocks)
        alive = -1  # everybody
        classes: list[tuple[int, int]] = []
        node = self._root
        depth = 0
        for local in blocks:
            child = node.children.get(local)
            still = 0 if child is None else alive & child.workers
            if still != alive and depth:
                classes.append((alive ^ still, depth))
            alive = still
            if child is None or not still:
                break
            node = child
            depth += 1
        counters.lookups += min(depth + 1, len(blocks))
        if alive and depth:
            classes.append((alive, depth))
        return Overlaps(classes)

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        for node in self._nodes.pop(worker, {}).values():
            self._drop(node, worker)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(nodes) for nodes in self._nodes.values())

    def names(self, worker: int) -> dict[int, int]:
        """Engine's block hash -> our sequence hash, of all that a worker holds."""
        return sequence_names(self.dump(worker))

    def dump(self, worker: int) -> list[BlockEvent]:
        """Events that lead an empty index to what a worker holds, parents first.

        Blocks that are not held, but stand before held ones, are published and then removed.
        """
        held = self._nodes.get(worker, {})
        names = {node: name for name, node in held.items()}
        spare = spare_names(held)
        missing: list[int] = []
        followers: dict[Node, list[Node]] = {}
        seen = {self._root}
        for node in list(names):
            while node not in seen:
                seen.add(node)
                if node not in names:
                    names[node] = next(spare)
                    missing.append(names[node])
                assert node.parent is not None
                followers.setdefault(node.parent, []).append(node)
                node = node.parent
        events: list[BlockEvent] = list(_chains(self._root, followers, names))
        return [*events, Removed(missing)] if missing else events

    def _store(self, worker: int, event: Stored) -> None:
        nodes = self._nodes.setdefault(worker, {})
        node = self._root
        if event.parent is not None:
            found = nodes.get(event.parent)
            if found is None:
                self.counters.unknown_parents += 1
                return
            node = found
        bit = 1 << worker
        num_known = 0
        for block_hash, local in zip(event.block_hashes, event.local_hashes, strict=True):
            child = node.children.get(local)
            if child is None:
                child = node.children[local] = Node(node, local)
            is_known = child.workers >> worker & 1
            num_known += is_known
            child.workers |= bit
            before = nodes.get(block_hash)
            if before is not child:
                if is_known:
                    _forget_name(nodes, child)
                nodes[block_hash] = child
                if before is not None:
                    self._drop(before, worker)
            node = child
        self.counters.duplicate_blocks += num_known
        self.counters.stored_blocks += len(event.block_hashes) - num_known

    def _remove(self, worker: int, block_hashes: Sequence[int]) -> None:
        nodes = self._nodes.get(worker, {})
        for block_hash in block_hashes:
            node = nodes.pop(block_hash, None)
            if node is None:
                self.counters.unknown_blocks += 1
                continue
            self.counters.removed_blocks += 1
            self._drop(node, worker)

    def _drop(self, node: Node, worker: int) -> None:
        """Take a worker off a node; empty leaves go, upwards."""
        node.workers &= ~(1 << worker)
        while not node.workers and not node.children and node.parent is not None:
            parent = node.parent
            del parent.children[node.local]
            node = parent


def _forget_name(nodes: dict[int, Node], node: Node) -> None:
    """Take the name off a block that gets a new one; rare enough for a search."""
    for block_hash, known in nodes.items():
        if known is node:
            del nodes[block_hash]
            return


def _chains(
    root: Node, followers: dict[Node, list[Node]], names: dict[Node, int]
) -> Iterator[Stored]:
    """Stored events of nodes, parents before children, as few as forks allow."""
    pending: list[tuple[int | None, Node]] = [(None, node) for node in followers.get(root, [])]
    while pending:
        parent, node = pending.pop()
        chain = [node]
        after = followers.get(node, [])
        while len(after) == 1:
            chain += after
            after = followers.get(chain[-1], [])
        yield Stored(parent, [names[node] for node in chain], [node.local for node in chain])
        pending += [(names[chain[-1]], node) for node in after]
