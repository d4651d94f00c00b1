"""The `hardware` key: a name, or a section that also states the link between a worker's GPUs.

Code reads it as the name that it is; what is stated besides hangs on it.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainSerializer, Tag

from dynosim.config.base import Section, check_rules, refuse
from dynosim.timing.links import LINK_GB_S

Link = Literal[
    "nvlink2",
    "nvlink3",
    "nvlink4",
    "nvlink5",
    "infinity_fabric",
    "pcie_gen3",
    "pcie_gen4",
    "pcie_gen5",
    "pcie_gen6",
]


def _positive(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
        raise refuse(
            f"a link of {value:g} GB/s moves nothing",
            "state its rate in one direction, as 64 for PCIe gen 5 x16",
        )
    return value


class HardwareConfig(Section):
    """The GPU of all workers, and what connects those of one worker."""

    name: str
    """Name of the GPU, or path of a data sheet (YAML)."""
    link_gb_s: Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_positive)] = None
    """Rate of the link between the GPUs of a worker, in one direction; null: the hardware's usual
    one, and the times that were measured over it. Unit: GB/s."""
    link: Link | None = None
    """What connects them, by name, in place of `link_gb_s`."""

    @property
    def link_gb_per_s(self) -> float | None:
        """The link's rate, if one is stated."""
        return LINK_GB_S[self.link] if self.link is not None else self.link_gb_s


class NamedHardware(str):
    """The name of a GPU and the link that is stated between those of a worker."""

    section: HardwareConfig | None

    def __new__(cls, name: str, section: HardwareConfig | None = None) -> "NamedHardware":
        text = super().__new__(cls, name)
        text.section = section
        return text

    def __getnewargs__(self) -> tuple[str, HardwareConfig | None]:  # type: ignore[override]
        return str(self), self.section

    @property
    def link_gb_per_s(self) -> float | None:
        return None if self.section is None else self.section.link_gb_per_s


def _named(value: str | HardwareConfig | None) -> NamedHardware | None:
    if value is None:
        return None
    if isinstance(value, str):
        return NamedHardware(value)
    check_rules(
        [
            ("link", value.link is not None and value.link_gb_s is not None,
             "given beside link_gb_s", "keep one of them"),
        ]
    )  # fmt: skip
    return NamedHardware(value.name, value if value.link_gb_per_s is not None else None)


def _plain(value: str | None) -> str | dict[str, Any] | None:
    """As it is written in a file: the name alone where it says all."""
    if value is None:
        return None
    section = getattr(value, "section", None)
    if section is None:
        return str(value)
    data: dict[str, Any] = section.model_dump(mode="json", exclude_none=True)
    return data


def _form(value: Any) -> str:
    if value is None:
        return "(none)"
    return "(section)" if isinstance(value, dict | HardwareConfig) else "(name)"


if TYPE_CHECKING:
    Hardware = NamedHardware | None
else:
    Hardware = Annotated[
        Annotated[str, Tag("(name)")]
        | Annotated[HardwareConfig, Tag("(section)")]
        | Annotated[None, Tag("(none)")],
        Discriminator(_form),
        AfterValidator(_named),
        PlainSerializer(_plain),
    ]
