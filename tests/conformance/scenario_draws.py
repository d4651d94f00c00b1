"""Random scenarios for schedulers: small engines under pressure, requests that share prefixes."""

import random
from typing import Any

Json = dict[str, Any]
OUTPUTS_FROM = 1_000_000_000  # generated token ids: a range of a million for each request
METHODS = ("ngram", "eagle", "draft_model")
TIMINGS = (
    None,
    {"c0": 1.0},
    {"c0": 5.0, "c1": 0.05, "c2": 0.1, "c3": 0.0005},
    {"c0": 0.3, "c1": 0.01, "c2": 0.02},
)


def draw_scenario(seed: int, number: int) -> Json:
    """The scenario of this number; each depends on the seed and its own number only."""
    rng = random.Random(f"{seed}/{number}")
    engine = _draw_engine(rng)
    timing = rng.choice(TIMINGS)
    scenario: Json = {"name": f"seed-{seed}-{number}", "engine": engine}
    scenario["requests"] = _draw_requests(rng, engine, has_time=timing is not None)
    scenario["max_steps"] = 3000
    if timing is not None:
        scenario["timing"] = timing
    return scenario | {"options": {"step_log": "none"}}


def _draw_engine(rng: random.Random) -> Json:
    """An engine whose blocks hold from less than one to a few of its longest sequences."""
    block_size = rng.choice((1, 2, 4, 8, 16, 16, 16, 32))
    max_model_len = rng.choice((64, 128, 128, 256, 512))
    blocks = max(2, round(max_model_len / block_size * rng.uniform(0.6, 4)))
    engine: Json = {
        "num_gpu_blocks": blocks + 1,
        "block_size": block_size,
        "max_num_seqs": rng.choice((1, 2, 3, 4, 4, 6, 8, 16, 32)),
        "max_num_batched_tokens": rng.choice((8, 16, 32, 48, 64, 128, 200, 512)),
        "max_model_len": max_model_len,
    }
    # vLLM wants a token for each seat, and without chunks a budget of a whole sequence.
    engine["max_num_seqs"] = min(engine["max_num_seqs"], engine["max_num_batched_tokens"])
    if rng.random() < 0.1:
        engine["enable_chunked_prefill"] = False
        engine["max_num_batched_tokens"] = max(max_model_len, engine["max_num_batched_tokens"])
    elif rng.random() < 0.35:
        largest = engine["max_num_batched_tokens"]
        engine["long_prefill_token_threshold"] = min(rng.choice((1, 4, 8, 16, 33, 64)), largest)
        if rng.random() < 0.45:
            engine["long_prefill_token_threshold_adaptive"] = True
    options = (
        (0.4, "policy", "priority"),
        (0.3, "watermark", rng.choice((0.01, 0.05, 0.1, 0.3))),
        (0.2, "scheduler_reserve_full_isl", False),
        (0.15, "enable_prefix_caching", False),
        (0.15, "max_num_active_seqs", rng.randint(1, engine["max_num_seqs"])),
        (0.5, "async_scheduling", True),
    )
    for chance, name, value in options:
        if rng.random() < chance:
            engine[name] = value
    return engine


def _draw_requests(rng: random.Random, engine: Json, *, has_time: bool) -> list[Json]:
    """Requests in bursts; ids out of alphabetical order, since equal priorities go by them."""
    requests: list[Json] = []
    arrival = 0.0
    for index in range(rng.randint(2, 30)):
        if rng.random() < 0.5:
            arrival += rng.choice((0.5, 1, 2, 5, 20, 50.7)) if has_time else rng.randint(1, 20)
        request: Json = {
            "id": f"{rng.choice('aqz')}{index}",
            "output_length": _draw_length(rng, engine["max_model_len"] // 2),
            "arrival_ms" if has_time else "arrival_step": arrival if has_time else int(arrival),
        }
        if rng.random() < 0.6:
            request["priority"] = rng.randint(-1, 2)
        request["prompt_ranges"] = _draw_prompt(rng, index, requests, engine)
        requests.append(request)
    return requests


def _draw_prompt(
    rng: random.Random, index: int, earlier: list[Json], engine: Json
) -> list[list[int]]:
    """A new prompt, or one that begins like an earlier request, or as its answer went on."""
    longest = engine["max_model_len"]
    own = [10_000 * (index + 1), _draw_length(rng, longest * 3 // 4)]
    if not earlier or rng.random() < 0.4:
        return [own]
    number = rng.randrange(len(earlier))
    other = earlier[number]
    ranges = [list(part) for part in other["prompt_ranges"]]
    if rng.random() < 0.4:  # the next turn of a conversation
        ranges.append([OUTPUTS_FROM + 1_000_000 * number, rng.randint(1, other["output_length"])])
    else:
        ranges[-1][1] = rng.randint(1, ranges[-1][1])
    if rng.random() < 0.6:
        ranges.append(own)
    return ranges


def _draw_length(rng: random.Random, longest: int) -> int:
    """Mostly short, at times long, often on or beside a whole number of blocks."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice((1, 2, 3, 5, 16, 17, 33, 48))
    return rng.randint(1, longest if kind < 0.6 else max(1, longest // 4))


def draw_remote_scenario(seed: int, number: int) -> Json:
    """The same with KV from elsewhere and for elsewhere, loads that fail, requests given up."""
    scenario = draw_scenario(seed, number)
    rng = random.Random(f"{seed}/{number}/remote")
    engine = scenario["engine"]
    engine["remote"] = {"role": rng.choice(("kv_both", "kv_consumer", "kv_producer"))}
    if rng.random() < 0.5:
        engine["remote"]["failure_policy"] = rng.choice(("fail", "recompute"))
    has_time = "timing" in scenario
    longest = rng.choice((1, 4, 20, 60))
    shares = [rng.choice((0.1, 0.4, 0.9)) for _ in range(4)]
    for request in scenario["requests"]:
        remote: Json = {}
        if rng.random() < shares[0]:
            remote["recv"] = True
            prompt = sum(count for _, count in request["prompt_ranges"])
            if rng.random() < 0.4:
                remote["tokens"] = rng.randint(1, prompt)
            if rng.random() < shares[1] / 2:
                blocks = -(-remote.get("tokens", prompt) // engine["block_size"])
                remote["fail"] = "all" if rng.random() < 0.4 else rng.randrange(blocks)
        if rng.random() < shares[2]:
            remote["send"] = True
        if remote:
            remote["delay"] = _draw_delay(rng, longest, has_time=has_time)
            request["remote"] = remote
        if rng.random() < shares[3] / 4:
            key = "arrival_ms" if has_time else "arrival_step"
            request["abort"] = request[key] + _draw_delay(rng, longest, has_time=has_time)
    scenario["name"] = f"remote-{scenario['name']}"
    return scenario


def draw_offload_scenario(seed: int, number: int) -> Json:
    """The same with a tier in host memory, from a third of the device's size to four times that."""
    scenario = draw_scenario(seed, number)
    rng = random.Random(f"{seed}/{number}/offload")
    engine = scenario["engine"]
    engine.pop("enable_prefix_caching", None)
    blocks = engine["num_gpu_blocks"] - 1
    has_time = "timing" in scenario
    longest = rng.choice((1, 4, 20, 60))
    size = rng.choice((1, 1, 1, 2, 3))
    offload: Json = {
        "chunks": max(1, round(blocks / size * rng.choice((0.3, 1, 1.5, 4)))),
        "policy": rng.choice(("lru", "arc")),
    }
    if size > 1:
        offload["blocks_per_chunk"] = size
    if rng.random() < 0.2:
        offload["store_threshold"] = rng.choice((1, 2, 3))
    if rng.random() < 0.2:
        offload["prompt_only"] = True
    for way in ("load", "store"):
        offload[f"{way}_delay"] = _draw_delay(rng, longest, has_time=has_time)
        if rng.random() < 0.5:
            most = max(1, longest // 8)
            offload[f"{way}_per_block"] = _draw_delay(rng, most, has_time=has_time)
    engine["offload"] = offload
    if rng.random() < 0.4:
        for request in scenario["requests"]:
            if rng.random() < 0.1:
                key = "arrival_ms" if has_time else "arrival_step"
                request["abort"] = request[key] + _draw_delay(rng, longest, has_time=has_time)
    scenario["name"] = f"offload-{scenario['name']}"
    return scenario


def draw_spec_scenario(seed: int, number: int) -> Json:
    """The same with drafts: alone, with KV exchanged, or with a tier in host memory."""
    rng = random.Random(f"{seed}/{number}/spec")
    draw = rng.choice((draw_scenario, draw_scenario, draw_remote_scenario, draw_offload_scenario))
    scenario = draw(seed, number)
    engine, timing = scenario["engine"], scenario.get("timing")
    most = rng.choice((1, 2, 3, 3, 4, 5, 8))
    methods = ("eagle", "draft_model") if engine.get("async_scheduling") else METHODS
    spec: Json = {"k": most, "method": rng.choice(methods)}
    if rng.random() < 0.8:
        spec["accept"] = _draw_numbers(rng, most)
    if rng.random() < 0.3:
        spec["drafts"] = _draw_numbers(rng, most)
    engine["spec"] = spec
    for request in scenario["requests"]:
        for name in ("accept", "drafts"):
            if rng.random() < 0.3:
                request[name] = _draw_numbers(rng, most)
    # vLLM fails where a cap cuts the placeholders of an admission, or a draft's slot takes all.
    if "long_prefill_token_threshold" in engine:
        cap = engine["long_prefill_token_threshold"]
        engine["long_prefill_token_threshold"] = min(
            max(cap, most + 1), engine["max_num_batched_tokens"]
        )
    if timing is not None and rng.random() < 0.5:
        timing = scenario["timing"] = {**timing, "c4": 0.03}
    scenario["name"] = f"spec-{scenario['name']}"
    return scenario


def _draw_numbers(rng: random.Random, most: int) -> list[int]:
    """For one step after the other."""
    if rng.random() < 0.2:
        return [rng.choice((0, most))]
    return [rng.randint(0, most) for _ in range(rng.randint(2, 7))]


def _draw_delay(rng: random.Random, longest: int, *, has_time: bool) -> float:
    """Often none or a round number, so that several things happen at once."""
    if rng.random() < 0.3 or not has_time:
        return rng.randint(0, longest)
    return round(rng.uniform(0, longest * 2), 3)
