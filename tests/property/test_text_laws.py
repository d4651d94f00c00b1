"""Laws of text that comes in pieces: nothing is lost, and cuts do not depend on the pieces."""

from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from http_support import tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from dynosim_runtime.dialects.output import ChoiceOutput
from dynosim_runtime.dialects.stop import StopFinder
from dynosim_runtime.requests import Sampling, TokenDelta
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.tokenize.load import load_tokenizer
from dynosim_runtime.tokenize.tokenizer import Tokenizer

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
FEW_LETTERS = st.text("abc\N{GRINNING FACE}", max_size=30)
STOPS = st.lists(st.text("abc\N{GRINNING FACE}", min_size=1, max_size=4), min_size=1, max_size=4)


@cache
def folder() -> Tokenizer:
    with TemporaryDirectory() as path:
        return load_tokenizer(tokenizer_folder(Path(path) / "model"))


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in pairwise(places)]


def cut_by_find(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that ends first; of those that end there, the longest."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    _, start, stop = min(found)
    return text[:start], stop


@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 1000)))
def test_stop_strings_cut_the_same_place_however_text_is_split(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    finder, shown, found = StopFinder(stops), "", None
    for piece in pieces_of(text, cuts):
        visible, found = finder.feed(piece)
        shown += visible
        if found is not None:
            break
    else:
        shown += finder.flush()
    assert (shown, found) == cut_by_find(text, stops)


@given(FEW_LETTERS, STOPS, st.lists(st.integers(0, 1000)))
def test_answers_are_cut_the_same_place_however_tokens_arrive(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    tokenizer = ByteTokenizer()
    token_ids = tokenizer.encode(text)
    sampling = Sampling(max_tokens=1000, stop=tuple(stops))
    output = ChoiceOutput(tokenizer.detokenizer(), sampling, [])
    places = sorted({0, len(token_ids), *(cut % (len(token_ids) + 1) for cut in cuts)})
    shown = ""
    for start, end in pairwise(places):
        shown += output.feed(TokenDelta(token_ids[start:end]))
        if output.stop_text is not None:
            break
    else:
        shown += output.finish()
    expected, stop = cut_by_find(text, stops)
    assert (shown, output.stop_text) == (expected, stop)
    assert output.text == shown
    assert output.num_tokens == len((expected + (stop or "")).encode())


@given(TEXTS)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    token_ids = tokenizer.encode(text)
    detokenizer = tokenizer.detokenizer()
    assert "".join(map(detokenizer.step, token_ids)) == text
    assert tokenizer.decode(token_ids) == text


@settings(max_examples=50)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 1000), st.booleans())))
def test_any_tokens_of_a_text_round_trip(text: str, splits: list[tuple[int, bool]]) -> None:
    """Pieces are tokenized one by one, some of them byte by byte: many ways to spell a text."""
    tokenizer = folder()
    as_bytes = {place % (len(text) + 1): whole for place, whole in splits}
    token_ids: list[int] = []
    position = 0
    for piece in pieces_of(text, [place for place, _ in splits]):
        if as_bytes.get(position):
            token_ids += byte_tokens(piece)
        else:
            token_ids += tokenizer.encode(piece)
        position += len(piece)
    detokenizer = tokenizer.detokenizer()
    assert tokenizer.decode(token_ids) == text
    assert "".join(map(detokenizer.step, token_ids)) == certain_text(tokenizer, token_ids)


@settings(deadline=None)
@given(st.lists(st.integers(3, 258), max_size=30))
def test_no_bytes_are_lost_even_if_they_are_no_text(token_ids: list[int]) -> None:
    tokenizer = folder()
    detokenizer = tokenizer.detokenizer()
    shown = "".join(map(detokenizer.step, token_ids))
    assert shown == certain_text(tokenizer, token_ids)


def certain_text(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    """The text of all tokens up to the last behind which no character seems unfinished."""
    texts = (tokenizer.decode(token_ids[:end]) for end in range(len(token_ids), -1, -1))
    return next(text for text in texts if not text.endswith("\ufffd"))


def byte_tokens(text: str) -> list[int]:
    """One token for each byte of a text."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = "".join(piece for piece, _ in spelled.pre_tokenize_str(text))
    by_letter = dict(zip(sorted(pre_tokenizers.ByteLevel.alphabet()), range(3, 259), strict=True))
    return [by_letter[letter] for letter in letters]
