"""Prompts as token ids, made from what a trace says of them.

Tokens follow from hash ids alone, so that equal ids after equal ids are equal tokens, as in the
twin, whatever the order of the requests; a trace without ids gives prompts that share nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from dynosim.errors import ConfigError
from dynosim.records import IntArray, Trace
from dynosim.silicon.catalogue import model_entry

_HASHED, _UNIQUE, _SCRATCH = 1, 2, 3
"""Families of tokens: from hash ids, of one request only, and of requests that do not count."""

_SPECIAL_SHARE = 0.05
"""Without a tokenizer at hand: so much of each end of a vocabulary may be special tokens."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The token ids that prompts are made of: `first` to `last`, `excluded` ones left out."""

    first: int
    last: int
    excluded: frozenset[int] = frozenset()
    allowed: IntArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = np.arange(self.first, self.last + 1)
        allowed = ids[~np.isin(ids, sorted(self.excluded))]
        if len(allowed) < 2:
            raise ConfigError(
                f"a vocabulary from {self.first} to {self.last} has no room for prompts"
            )
        object.__setattr__(self, "allowed", allowed)


UNKNOWN_VOCABULARY = Vocabulary(300, 1000)
"""Plain tokens of every model in use, as far as we know."""


def vocabulary_of(model: str | None) -> Vocabulary:
    """The plain tokens of a model, given by name or folder; a guess if it is not known.

    Raises: ConfigError for a folder without a usable config.json.
    """
    if model is None:
        return UNKNOWN_VOCABULARY
    folder = Path(model)
    if folder.is_dir():
        return _folder_vocabulary(folder)
    try:
        config = model_entry(model).config
    except ConfigError:
        return UNKNOWN_VOCABULARY
    size = _vocab_size(config)
    if size is None:
        return UNKNOWN_VOCABULARY
    margin = int(size * _SPECIAL_SHARE)
    return Vocabulary(margin, size - 1 - margin)


def _folder_vocabulary(folder: Path) -> Vocabulary:
    config = _read_json(folder / "config.json")
    size = None if config is None else _vocab_size(config)
    if config is None or size is None:
        raise ConfigError(f"{folder / 'config.json'}: no vocab_size (name a model's folder)")
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {token for name in names for token in _as_list(config.get(name))}
    tokenizer = _read_json(folder / "tokenizer.json")
    if tokenizer is None:
        margin = int(size * _SPECIAL_SHARE)
        return Vocabulary(margin, size - 1 - margin, frozenset(special))
    special |= {entry["id"] for entry in tokenizer.get("added_tokens", [])}
    known = tokenizer.get("model", {}).get("vocab")
    last = min(size, len(known)) - 1 if known else size - 1
    return Vocabulary(0, last, frozenset(special))


def _vocab_size(config: dict[str, Any]) -> int | None:
    size = config.get("text_config", config).get("vocab_size")
    return size if isinstance(size, int) and size > 0 else None


def _as_list(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int)]


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        data = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


class PromptMaker:
    """Token ids of prompts. The same trace, seed and vocabulary give the same prompts."""

    def __init__(self, vocabulary: Vocabulary, *, seed: int = 0) -> None:
        self._allowed = vocabulary.allowed
        self._seed = seed

    def prompt(self, trace: Trace, index: int) -> IntArray:
        """The prompt of a request of a trace."""
        length = int(trace.input_tokens[index])
        if len(trace.hash_ids) == 0:
            return self._tokens(_UNIQUE, np.array([index]), length, length)
        ids = trace.hash_ids[trace.hash_offsets[index] : trace.hash_offsets[index + 1]]
        block_size = trace.trace_block_size
        hashed = self._tokens(_HASHED, ids, block_size, min(length, len(ids) * block_size))
        rest = length - len(hashed)
        return np.concatenate([hashed, self._tokens(_UNIQUE, np.array([index]), rest, rest)])

    def scratch(self, index: int, length: int) -> IntArray:
        """A prompt that shares nothing with those of a trace, nor with other scratch prompts."""
        return self._tokens(_SCRATCH, np.array([index]), length, length)

    def _tokens(self, family: int, ids: IntArray, block_size: int, length: int) -> IntArray:
        """`block_size` tokens per id, cut to `length`."""
        with np.errstate(over="ignore"):
            root = _mixed(np.uint64((self._seed << 2) % (1 << 64) + family))
            keys = _mixed(_mixed(ids.astype(np.uint64)) ^ root)
            positions = np.arange(block_size, dtype=np.uint64)
            draws = _mixed(keys[:, None] + positions[None, :] * _GOLDEN)
        picked = (draws.ravel()[:length] % np.uint64(len(self._allowed))).astype(np.int64)
        tokens: IntArray = self._allowed[picked]
        return tokens


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: Any) -> Any:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): every bit depends on all bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
