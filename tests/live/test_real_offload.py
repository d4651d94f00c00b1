"""Real vLLM that offloads KV to host memory: our index knows what is where as well as it does.

vLLM makes no copies on CPUs: `host_copies` does, all else is its own.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from cluster import EXACT, VLLM_PYTHON, Cluster, metric_of, write_plan
from streams import Stream, prompt, stream_all

from dynosim.indexer.make import make_indexer
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.inputs import Arrive, WorkerEvents
from dynosim.router.log.entries import input_of
from dynosim.workers.ids import Slot

BLOCK = 32
DEVICE_BLOCKS, HOST_BLOCKS = 60, 130
BLOCK_BYTES = 4 * 2 * BLOCK * 2 * 32 * 4  # layers, keys and values, tokens, heads, width, float32
OFFLOAD = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {
        "spec_name": "HostCopiesSpec",
        "spec_module_path": "host_copies",
        "cpu_bytes_to_use": HOST_BLOCKS * BLOCK_BYTES,
        "self_describing_kv_events": True,
    },
}
HITS = ("vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_hits_total")
NUM_FAMILIES = 8
NUM_REQUESTS = 60


class Hits(NamedTuple):
    """Blocks of a prompt that were found."""

    device: int
    host: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("offload")
    plan = write_plan(
        folder,
        name="offload",
        model=tiny_model,
        workload={"synthetic": {"requests": 10, "isl": 100, "osl": 10, "rate_rps": 10}},
        engine={
            "block_size": BLOCK,
            "num_gpu_blocks": DEVICE_BLOCKS,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 512,
            "max_model_len": 1024,
        },
        timing={"kind": "linear", "base_ms": 10.0},
        cluster={"workers": 2},
        # A block is a block, so that what a decision says is cached is what the engine finds.
        router={"mode": "kv", "host_cache_hit_weight": 1.0},
        live={
            "engine_args": [*EXACT, "--kv-transfer-config", json.dumps(OFFLOAD)],
            "engine_env": {"PYTHONPATH": str(Path(__file__).parent)},
        },
    )
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, folder / "out", *engine) as cluster:
        yield cluster
    assert cluster.replay()["num_decisions"] == NUM_REQUESTS
    found, told = hits_by_log(cluster.out / "router"), reported_hits
    assert found == told


reported_hits: list[Hits] = []
"""Of the engines, request by request."""


def total_hits(cluster: Cluster) -> Hits:
    """Blocks found in both engines so far."""
    urls = [row["url"] for row in cluster.workers().values()]
    return Hits(*(int(sum(metric_of(url, name) for url in urls)) // BLOCK for name in HITS))


def hits_by_log(folder: Path) -> list[Hits]:
    """What an index that got the router's events finds at the workers that it chose."""
    index = make_indexer("compressed")
    assert isinstance(index, TieredIndex)
    found: list[Hits] = []
    slots: dict[int, Slot] = {}
    for file in sorted(folder.glob("*.jsonl")):
        _, *entries = map(msgspec.json.decode, file.read_bytes().splitlines())
        for entry in entries:
            if entry[0] == "event":
                given = input_of(entry)
                assert isinstance(given, WorkerEvents)
                slot = slots.setdefault(given.worker_id, Slot(len(slots)))
                for event in given.events:
                    index.apply(slot, event)
            elif entry[0] == "arrive":
                given = input_of(entry)
                assert isinstance(given, Arrive)
                slot = slots.setdefault(entry[3][1], Slot(len(slots)))
                overlaps = index.find_tier_matches(given.request.blocks)
                found.append(Hits(overlaps.device.depth_of(slot), overlaps.host.depth_of(slot)))
    return found


def ask(cluster: Cluster, body: dict[str, Any]) -> Stream:
    """One request, and then rest: until the engines have copied, and told so."""
    (stream,) = asyncio.run(stream_all(cluster.url, [body]))
    assert stream.is_done, stream.error
    num_events, is_still = cluster.metric("dynosim_kv_events"), 0
    while is_still < 3:
        time.sleep(0.1)
        before, num_events = num_events, cluster.metric("dynosim_kv_events")
        is_still = is_still + 1 if num_events == before else 0
    return stream


def test_a_prompt_is_found_on_device_and_host_as_the_index_says(cluster: Cluster) -> None:
    """Prompts of a few families, of any length that is not whole blocks, with answers in between.

    Together they need more blocks than two devices have, and now and then more than the hosts.
    """
    draw = random.Random(17)
    before = total_hits(cluster)
    for _ in range(NUM_REQUESTS):
        family, length = draw.randrange(NUM_FAMILIES), draw.choice([200, 330, 420, 500, 690])
        body = {
            "prompt": prompt(family, length, shared=96),
            "max_tokens": draw.choice([1, 20, 70]),
        }
        stream = ask(cluster, body)
        now = total_hits(cluster)
        reported_hits.append(Hits(now.device - before.device, now.host - before.host))
        before = now
        cached_tokens = stream.usage["prompt_tokens_details"]["cached_tokens"]
        believed = stream.nvext["timing"]["kv_hit_rate"] * stream.usage["prompt_tokens"]
        assert round(believed) == cached_tokens == BLOCK * sum(reported_hits[-1])
    assert sum(hits.host > 0 for hits in reported_hits) > NUM_REQUESTS // 6
    assert sum(hits.device > 0 for hits in reported_hits) > NUM_REQUESTS // 6
    assert cluster.metric("dynosim_kv_malformed") == 0
