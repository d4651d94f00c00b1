"""From a model folder to its tokenizer."""

from pathlib import Path

from dynosim.errors import ConfigError
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer
from dynosim_runtime.tokenize.folder_tokenizer import FolderTokenizer
from dynosim_runtime.tokenize.tokenizer import Tokenizer


def load_tokenizer(path: str | Path | None) -> Tokenizer:
    """The tokenizer in a Hugging Face model folder; None: the byte tokenizer.

    Nothing is downloaded. Raises: ConfigError if the folder or its tokenizer cannot be used.
    """
    if path is None:
        return ByteTokenizer()
    folder = Path(path)
    if not folder.is_dir():
        raise ConfigError(
            f"{folder}: no such model folder (it must hold tokenizer.json; "
            "`dynosim tiny-model DIR` makes a small one)"
        )
    return FolderTokenizer(folder)
