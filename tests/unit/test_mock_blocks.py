"""What a simulated engine tells of its blocks, in vLLM's words."""

import numpy as np
import pytest

from dynosim.blocks.hashing import local_hashes
from dynosim.blocks.kv_event import KvEvent
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.wire import to_block_event
from dynosim_runtime.mock.blocks import BlockLedger

BLOCK = 4
TOKENS = np.arange(100, 112)
LOCAL = local_hashes(TOKENS, BLOCK)


def told(ledger: BlockLedger, *events: KvEvent) -> list[object]:
    return [to_block_event(event, BLOCK) for event in ledger.engine_events(events)]


def stored(name: int, parent: int | None, tier: Tier = Tier.DEVICE) -> KvEvent:
    return KvEvent(True, name, 0, 1, parent, tier)


def test_blocks_behind_each_other_are_one_event_of_their_tier() -> None:
    ledger = BlockLedger(BLOCK)
    a, b, c = ledger.open(TOKENS, "")
    assert told(ledger, stored(a, None), stored(b, a), stored(c, b, Tier.HOST)) == [
        Stored(None, [a, b], LOCAL[:2]),
        Stored(b, [c], LOCAL[2:], Tier.HOST),
    ]
    assert told(ledger, KvEvent(False, c, 0, 1, None, Tier.DISK), stored(a, None, Tier.HOST)) == [
        Removed([c], Tier.DISK),
        Stored(None, [a], LOCAL[:1], Tier.HOST),
    ]


def test_a_slower_tier_may_take_in_blocks_of_requests_that_are_over() -> None:
    ledger = BlockLedger(BLOCK, num_kept=2)
    names = ledger.open(TOKENS, "")
    ledger.close(names)
    assert len(ledger) == 0
    a, b, c = names
    events = [stored(a, None, Tier.HOST), stored(b, a, Tier.HOST), stored(c, b, Tier.HOST)]
    assert told(ledger, *events) == [Stored(a, [b, c], LOCAL[1:], Tier.HOST)]  # two are kept
    ledger.open(TOKENS[:4], "")
    assert told(ledger, events[0]) == [Stored(None, [a], LOCAL[:1], Tier.HOST)]


def test_without_slower_tiers_nothing_is_kept() -> None:
    ledger = BlockLedger(BLOCK)
    names = ledger.open(TOKENS, "")
    ledger.close(names)
    assert told(ledger, stored(names[0], None, Tier.HOST)) == []
    with pytest.raises(KeyError):  # a device stores only for a request in hand
        ledger.engine_events([stored(names[0], None)])
