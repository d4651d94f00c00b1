"""Router logs that an earlier version wrote replay equal, decision by decision.

`router_logs/` holds a log with an entry of every kind, one in several files with checkpoints, and
those of three runs of the twin: by extents, by hashes with a queue and decaying load, by guesses.
"""

import json
from pathlib import Path

import pytest
from router_support import BLOCK

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.routerlog.replay import replay_log

LOGS = Path(__file__).parent.parent / "router_logs"
DECISIONS = {
    "every-kind.jsonl": 14,
    "rotating": 17,
    "twin-approximate.jsonl": 16,
    "twin-extents.jsonl": 16,
    "twin-hashes.jsonl": 16,
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_log_of_before_replays_equal(name: str) -> None:
    verdict = replay_log(LOGS / name)
    assert verdict.is_equal, verdict
    assert verdict.num_decisions == DECISIONS[name] and not verdict.notes


def test_all_logs_of_before_are_looked_at() -> None:
    assert {path.name for path in LOGS.iterdir()} == set(DECISIONS)


@pytest.mark.parametrize("knows_tiers", [False, True])
def test_what_a_log_of_before_says_of_a_host_was_taken_for_the_device(
    tmp_path: Path, knows_tiers: bool
) -> None:
    """Then a block on the host was a hit; now it is none, and a log says which of them it is."""
    names = sequence_hashes([1, 2])
    header = {
        "format": 1, "settings": {"block_size": BLOCK, "mode": "kv"}, "index": {"kind": "radix"},
        **({"knows_tiers": True} if knows_tiers else {}),
    }  # fmt: skip
    stored = {"stored": names, "local": [1, 2], "parent": None, "tier": int(Tier.HOST)}
    request = {"request_id": "r", "input_tokens": 2 * BLOCK, "num_blocks": 2, "blocks": [1, 2],
               "keys": names}  # fmt: skip
    as_before, as_now = ["r", 7, 0, 0, 2.0, 2, 2 * BLOCK, 0.0], ["r", 7, 0, 0, 2.5, 1.5, 24, 0.0]
    documents = [
        header,
        ["join", 0.0, {"worker_id": 7, "block_size": BLOCK, "taints": []}],
        ["event", 0.0, 7, 0, stored],
        ["arrive", 1.0, request, as_now if knows_tiers else as_before],
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))
    verdict = replay_log(path)
    assert verdict.is_equal, verdict
