"""One mapping for all knobs: what a section and a spec have under the same name is the same thing.

So a new knob is a field of the spec, with its default, and a key of the section, with its bounds.
"""

from dataclasses import fields
from typing import Any, TypeVar

from dynosim.config.base import Section

Spec = TypeVar("Spec")


def from_section(spec: type[Spec], section: Section, **others: Any) -> Spec:
    """What `section` says as a `spec`; `others` are what it does not say, or says otherwise."""
    keys = type(section).model_fields
    names = [field.name for field in fields(spec) if field.name in keys]  # type: ignore[arg-type]
    return spec(**{name: getattr(section, name) for name in names} | others)
