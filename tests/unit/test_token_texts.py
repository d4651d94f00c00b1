"""Texts of tokens beside their log probabilities, where characters take several tokens.

`vllm_token_texts.json` has what vLLM's own `LogprobsProcessor` (0.32) says of the tokens of some
answers, and of two alternatives of each: [token ids, alternatives, texts]. Its tokenizer is
`byte_bpe`; a third of the answers are random.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dynosim_runtime.dialects.logprobs import TokenTexts, chat_logprobs, completion_logprobs
from dynosim_runtime.requests import TokenLogprob
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.tokenize.folder_tokenizer import FolderTokenizer

RECORDED = json.loads(Path(__file__).with_name("vllm_token_texts.json").read_text("utf-8"))
# Halves and thirds of characters with what stands beside them, in the letters of byte-level BPE.
MERGES = [("h", "Ã"), ("Ã", "¤"), ("æ", "Ĺ"), ("æĹ", "¥"), ("ð", "Ł"), ("ĺ", "Ģ"), ("Ģ", "a")]


def byte_bpe(folder: Path) -> Path:
    """A model folder whose tokenizer knows all bytes, and some of their neighbours as one."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *("".join(pair) for pair in MERGES)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@cache
def byte_bpe_tokenizer() -> FolderTokenizer:
    return FolderTokenizer(byte_bpe(Path(mkdtemp())))


@cache
def metaspace_tokenizer() -> FolderTokenizer:
    """One of words that are marked where a blank stands before them."""
    folder = Path(mkdtemp())
    words = {"<unk>": 0, "▁the": 1, "▁": 2, "x": 3, "▁▁▁x": 4}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
    )
    return FolderTokenizer(folder)


def tokens(ids: list[int], tops: list[list[int]]) -> list[TokenLogprob]:
    return [
        TokenLogprob(token_id, -1.0, [(other, -2.0) for other in top])
        for token_id, top in zip(ids, tops, strict=True)
    ]


@pytest.mark.parametrize(("ids", "tops", "texts"), RECORDED)
def test_texts_are_vllms(ids: list[int], tops: list[list[int]], texts: list[list[str]]) -> None:
    tokenizer = byte_bpe_tokenizer()
    ours = TokenTexts(tokenizer.decode, tokenizer.token_string)
    told = [ours.next(token) for token in tokens(ids, tops)]
    assert [[text, *others] for text, others in told] == texts


def test_the_recorded_answers_have_both_kinds_of_tokens() -> None:
    shown = [text for _, _, texts in RECORDED for text, *_ in texts]
    assert len(shown) > 100 and 30 < shown.count("") < len(shown) - 30


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=12))
def test_the_texts_of_a_whole_text_add_up_to_it(text: str) -> None:
    for tokenizer in (byte_bpe_tokenizer(), ByteTokenizer()):
        ids = tokenizer.encode(text)
        ours = TokenTexts(tokenizer.decode, tokenizer.token_string)
        assert "".join(ours.next(TokenLogprob(token_id, -1.0))[0] for token_id in ids) == text


def test_answers_in_pieces_go_on_where_they_were_cut() -> None:
    tokenizer = byte_bpe_tokenizer()
    ids = tokenizer.encode("a😀ä日b")
    whole = tokens(ids, [[i] for i in ids])
    at_once, end = completion_logprobs(whole, 0, TokenTexts(tokenizer.decode))
    assert at_once["text_offset"] == [0, *_offsets(at_once["tokens"])][: len(ids)]
    assert end == len("a😀ä日b")
    pieces, offset, texts = [], 0, TokenTexts(tokenizer.decode)
    for token in whole:
        piece, offset = completion_logprobs([token], offset, texts)
        pieces.append(piece)
    for key, told in at_once.items():
        assert [item for piece in pieces for item in piece[key]] == told
    assert offset == end
    chat = chat_logprobs(whole, 1, TokenTexts(tokenizer.decode))["content"]
    assert [entry["token"] for entry in chat] == at_once["tokens"]
    assert bytes(byte for entry in chat for byte in entry["bytes"]).decode() == "a😀ä日b"
    assert [entry["top_logprobs"][0]["token"] for entry in chat] == at_once["tokens"]


def _offsets(texts: list[str]) -> list[int]:
    return [len("".join(texts[:end])) for end in range(1, len(texts) + 1)]


@pytest.mark.parametrize(("token_id", "text"), [(1, " the"), (2, " "), (3, "x"), (4, "   x")])
def test_blanks_that_words_carry_are_shown(token_id: int, text: str) -> None:
    """As vLLM's `convert_ids_list_to_tokens`; decoded alone, a word loses its blanks."""
    tokenizer = metaspace_tokenizer()
    assert tokenizer.token_string(token_id) == text
    assert tokenizer.decode([token_id]) == text.lstrip()


def test_of_alternatives_that_read_alike_the_likeliest_counts() -> None:
    tokenizer = ByteTokenizer()
    halves = tokenizer.encode("ä")
    token = TokenLogprob(halves[0], -0.5, [(halves[0], -0.5), (halves[1], -3.0), (100, -2.0)])
    told, _ = completion_logprobs([token], 0, TokenTexts(tokenizer.decode))
    assert told["top_logprobs"] == [{"": -0.5, tokenizer.decode([100]): -2.0}]
