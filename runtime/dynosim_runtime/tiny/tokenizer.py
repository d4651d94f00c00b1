"""A small tokenizer, trained on a text that comes with the package: always the same one."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

VOCAB_SIZE = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
BOS_TOKEN_ID = 0
EOS_TOKEN_ID = 2


@cache
def tokenizer_files() -> dict[str, str]:
    """The texts of a Hugging Face tokenizer's files, by file name."""
    template = files("dynosim_runtime.tiny").joinpath("chat_template.jinja").read_text("utf-8")
    return {
        "tokenizer.json": _trained().to_str(pretty=True),
        "tokenizer_config.json": json.dumps(_tokenizer_config(), indent=2) + "\n",
        "chat_template.jinja": template,
    }


def _trained() -> Any:
    """A byte-level BPE of `VOCAB_SIZE` tokens: any text can be encoded and comes back the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = json.loads(files("dynosim_runtime.tiny").joinpath("corpus.json").read_text("utf-8"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, "the text is too short for this vocabulary"
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_TOKEN_ID],
        "eos_token": SPECIAL_TOKENS[EOS_TOKEN_ID],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
