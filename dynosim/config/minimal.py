"""A run file that says only what differs from the defaults."""

from typing import Any

from dynosim.config.file_keys import GENERATED
from dynosim.config.schema import RunConfig


def minimal(config: RunConfig) -> dict[str, Any]:
    """What `RunConfig.of` makes an equal configuration of: no key that is at its default.

    A distribution that is one number is written as that number.
    """
    data: dict[str, Any] = config.model_dump(mode="json", exclude_defaults=True)
    for source in GENERATED:
        section = data["workload"].get(source)
        if section is not None:
            data["workload"][source] = {
                key: _number_or_section(value) for key, value in section.items()
            }
    return data


def _number_or_section(value: Any) -> Any:
    is_number = isinstance(value, dict) and value.keys() == {"dist", "mean"}
    return value["mean"] if is_number and value["dist"] == "fixed" else value
