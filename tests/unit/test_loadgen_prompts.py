import json
from pathlib import Path

import numpy as np
import pytest

from dynosim.blocks.hashing import local_hashes, sequence_hashes, trace_local_hashes
from dynosim.errors import ConfigError
from dynosim.records import Trace
from dynosim_runtime.measure.prompts import (
    UNKNOWN_VOCABULARY,
    PromptMaker,
    Vocabulary,
    vocabulary_of,
)


def trace_of(rows: list[tuple[int, list[int]]], block: int = 8) -> Trace:
    """Requests as (prompt tokens, hash ids)."""
    ids = [i for _, row in rows for i in row]
    offsets = np.cumsum([0, *(len(row) for _, row in rows)])
    return Trace(
        arrival_ms=np.zeros(len(rows)),
        input_tokens=np.array([tokens for tokens, _ in rows]),
        output_tokens=np.ones(len(rows), dtype=np.int64),
        hash_ids=np.array(ids, dtype=np.int64),
        hash_offsets=offsets.astype(np.int64),
        trace_block_size=block,
    )


def prompts_of(trace: Trace, seed: int = 0) -> list[list[int]]:
    maker = PromptMaker(Vocabulary(10, 500), seed=seed)
    return [maker.prompt(trace, index).tolist() for index in range(len(trace))]


def test_prompts_share_what_hash_ids_say_and_nothing_more() -> None:
    trace = trace_of([(24, [1, 2, 3]), (24, [1, 2, 4]), (20, [1, 2, 3]), (24, [5, 2, 3])])
    first, second, cut, other = prompts_of(trace)
    assert first[:16] == second[:16]
    assert first[16:] != second[16:]
    assert cut == first[:20]
    assert first[:8] != other[:8]
    assert [len(prompt) for prompt in (first, cut)] == [24, 20]


@pytest.mark.parametrize("block_size", [1, 4, 5, 8, 16])
def test_blocks_are_equal_where_the_twin_takes_them_to_be(block_size: int) -> None:
    trace = trace_of([(24, [1, 2, 3]), (30, [1, 2, 4, 9]), (19, [1, 2, 4]), (24, [5, 2, 3])])
    tokens = [sequence_hashes(local_hashes(prompt, block_size)) for prompt in prompts_of(trace)]
    local, offsets = trace_local_hashes(trace, block_size)
    twin = [sequence_hashes(local[offsets[i] : offsets[i + 1]].tolist()) for i in range(len(trace))]
    for one in range(len(trace)):
        for two in range(one):
            same = [a == b for a, b in zip(tokens[one], tokens[two], strict=False)]
            expected = [a == b for a, b in zip(twin[one], twin[two], strict=False)]
            assert same == expected


def test_without_ids_prompts_share_nothing() -> None:
    trace = trace_of([(64, []), (64, [])])
    one, two = prompts_of(trace)
    assert len(set(zip(one, two, strict=True))) > 32
    assert one[0] != two[0]


def test_seed_changes_every_prompt_and_nothing_else_does() -> None:
    trace = trace_of([(24, [1, 2, 3])])
    assert prompts_of(trace) == prompts_of(trace)
    assert prompts_of(trace)[0][:8] != prompts_of(trace, seed=1)[0][:8]


def test_scratch_prompts_differ_from_those_of_the_trace() -> None:
    trace = trace_of([(64, [0])], block=64)
    maker = PromptMaker(Vocabulary(10, 500))
    scratch = maker.scratch(0, 64).tolist()
    assert scratch != maker.prompt(trace, 0).tolist()
    assert scratch != maker.scratch(1, 64).tolist()


def test_tokens_stay_inside_the_vocabulary_without_special_ones() -> None:
    maker = PromptMaker(Vocabulary(4, 9, frozenset({5, 7})))
    assert set(maker.scratch(3, 500).tolist()) == {4, 6, 8, 9}


def test_a_folder_tells_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"vocab_size": 100, "eos_token_id": [2, 3], "bos_token_id": 0})
    )
    (tmp_path / "tokenizer.json").write_text(
        json.dumps(
            {"added_tokens": [{"id": 90}], "model": {"vocab": {f"t{i}": i for i in range(95)}}}
        )
    )
    vocabulary = vocabulary_of(str(tmp_path))
    assert (vocabulary.first, vocabulary.last) == (0, 94)
    assert vocabulary.excluded == {0, 2, 3, 90}


def test_known_models_and_unknown_ones() -> None:
    assert vocabulary_of("Qwen/Qwen3-32B").last < 151_643
    assert vocabulary_of("no/such-model") == UNKNOWN_VOCABULARY
    assert vocabulary_of(None) == UNKNOWN_VOCABULARY


def test_a_folder_without_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="vocab_size"):
        vocabulary_of(str(tmp_path))
