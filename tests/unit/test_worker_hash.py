"""The hash that tells generations of workers apart."""

import hashlib
from typing import Any

import pytest

from dynosim.build.worker_hash import workers_hash
from dynosim.errors import ConfigError

SPECS: dict[str, dict[str, Any]] = {
    "prefill": {"image": "engine:1.0", "args": ["--tp", "2"], "env": {"A": "1"}, "replicas": 2},
    "decode": {"image": "engine:1.0", "args": ["--tp", "4"], "replicas": 1},
}
BEFORE = workers_hash(SPECS)


def changed(pool: str, **changes: Any) -> str:
    return workers_hash({**SPECS, pool: {**SPECS[pool], **changes}})


def test_it_is_the_sha_256_of_what_workers_are() -> None:
    one = {"decode": {"image": "engine:1.0", "replicas": 3}}
    text = '{"decode": "{\\"image\\":\\"engine:1.0\\"}"}'
    assert workers_hash(one) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("pool", SPECS)
def test_the_number_of_workers_leaves_it(pool: str) -> None:
    assert changed(pool, replicas=9) == BEFORE
    without = {key: value for key, value in SPECS[pool].items() if key != "replicas"}
    assert workers_hash({**SPECS, pool: without}) == BEFORE


@pytest.mark.parametrize("pool", SPECS)
def test_anything_else_of_any_pool_moves_it(pool: str) -> None:
    others = [
        changed(pool, image="engine:1.1"),
        changed(pool, args=["--tp", "8"]),
        changed(pool, args=list(reversed(SPECS[pool]["args"]))),
        changed(pool, engine={"max_num_seqs": 64}),
        workers_hash({f"{pool}2": SPECS[pool], **{k: v for k, v in SPECS.items() if k != pool}}),
    ]
    assert len({BEFORE, *others}) == len(others) + 1


def test_the_order_of_keys_and_pools_does_not_count() -> None:
    turned = {pool: dict(reversed(spec.items())) for pool, spec in reversed(SPECS.items())}
    assert workers_hash(turned) == BEFORE


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object()])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="spec of workers decode: cannot be hashed"):
        changed("decode", odd=value)
