"""JSON and YAML that users hand in: whatever is wrong with it is one ValueError with a sentence.

The parsers themselves raise five kinds of errors, of which two (a text nested too deeply, bytes
that are no UTF-8) are forgotten too easily.
"""

import json
from typing import Any

_TOO_DEEP = "nested too deeply"


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON document. Raises: ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_yaml(text: str) -> Any:
    """The value of a YAML document, by the safe loader.

    Raises: ValueError, which begins with `line N: ` where the place is known.
    """
    import yaml

    try:
        # libyaml where it is: the other scanner takes hours for lists in lists
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{line}{getattr(error, 'problem', None) or error}") from None
