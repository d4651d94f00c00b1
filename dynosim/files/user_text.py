"""JSON and YAML that users hand in: what is wrong with it is one ValueError with a sentence.

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
    """The value of a YAML document, by the safe loader. Raises: UnreadableYamlError."""
    import yaml

    try:
        # libyaml where it is: the other scanner takes hours for lists in lists
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except RecursionError:
        raise UnreadableYamlError(_TOO_DEEP) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        raise UnreadableYamlError(error.problem or str(error.context), line) from None
    except (yaml.YAMLError, ValueError) as error:
        raise UnreadableYamlError(" ".join(str(error).split())) from None


class UnreadableYamlError(ValueError):
    """Text that is no YAML; `line` counts from 1, 0 where the place is not known."""

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line
