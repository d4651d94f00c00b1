"""What tells one generation of workers from the next: a hash over all that they are.

How many there are is left out: who only scales needs no update. All pools count together, so that a
change of one makes a new generation of all, as pools that exchange KV need.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from dynosim.errors import ConfigError

NUMBERS = ("replicas",)
"""Keys of a worker's spec that say how many there are."""


def workers_hash(specs: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over the specs of all workers by pool, without `replicas`, as 64 hex digits.

    Specs are what JSON can say; the order of their keys does not count. Raises: ConfigError naming
    a pool whose spec JSON cannot say.
    """
    told = {}
    for pool, spec in specs.items():
        worker = {key: value for key, value in spec.items() if key not in NUMBERS}
        try:
            told[pool] = json.dumps(worker, sort_keys=True, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"spec of workers {pool}: cannot be hashed: {error}") from None
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
