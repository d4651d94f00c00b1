"""Accelerators by name: built-in data sheets (`sheet_rows`), and YAML files of a user's own."""

import difflib
import re
from dataclasses import fields
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_yaml
from dynosim.silicon.cuda_totals import CUDA_TOTAL_GIB
from dynosim.silicon.names import DEVICE_NAMES, OTHER_NAMES, SERIES
from dynosim.silicon.power import TDP_W, idle_w
from dynosim.silicon.sheet_rows import LINKS_BY_GPUS, NODES, ROWS, WITHOUT_PEER_ACCESS, SheetRow
from dynosim.timing.sheets import HardwareSheet, derived_cuda_total_gib


def _sheet(name: str, row: SheetRow) -> HardwareSheet:
    gpus_per_node, nvlink_domain_gpus = NODES.get(name, (8, None))
    return HardwareSheet(
        name=name,
        **row._asdict(),
        cuda_total_gib=CUDA_TOTAL_GIB.get(name) or derived_cuda_total_gib(row.memory_gib),
        gpus_per_node=gpus_per_node,
        nvlink_domain_gpus=nvlink_domain_gpus,
        links_by_gpus=LINKS_BY_GPUS.get(name, ()),
        has_peer_access=name not in WITHOUT_PEER_ACCESS,
        tdp_w=TDP_W.get(name),
        idle_w=idle_w(name),
    )


_SHEETS = {name: _sheet(name, row) for name, row in ROWS.items()}


_USUAL_FORM = {
    "a100": "a100_sxm",
    "a100_40gb": "a100_sxm_40gb",
    "a100_80gb": "a100_sxm",
    "a6000": "rtx_a6000",
    "a800": "a800_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "h800": "h800_sxm",
    "rtx_pro_6000": "rtx_pro_6000_server",
    "v100": "v100_sxm",
    "v100_16gb": "v100_sxm_16gb",
    "v100_32gb": "v100_sxm",
}
"""What a name without the form, or without the size of the memory, stands for."""

_OPTIONAL = (
    "cuda_total_gib",
    "int8_tops",
    "fp4_tflops",
    "nvlink_domain_gpus",
    "tdp_w",
    "idle_w",
    "source",
)
"""What a data sheet need not tell: CUDA's total is derived, formats without a rate are computed in
bf16, the link joins a node, and without its power no energy is estimated."""
_BUILT_IN_ONLY = ("links_by_gpus", "has_peer_access")
"""Fields that are no single figure: those of a sheet of the user's own are the usual ones."""
_TEXTS = ("name", "source")
_MAKERS = ("nvidia", "geforce", "tesla")


def usual_name(hardware: str) -> str:
    """The built-in name that another spelling means: `RTX 4090` is rtx_4090, H100 h100_sxm.

    Anything else comes back as it is, for `hardware_sheet` to refuse or to open.
    """
    if hardware in _SHEETS:
        return hardware
    hardware = OTHER_NAMES.get(hardware, hardware)
    named = {_plain(name): name for name in _SHEETS}
    named |= {_plain(short): name for short, name in (_USUAL_FORM | DEVICE_NAMES).items()}
    return named.get(_plain(hardware)) or _of_its_memory(hardware, named) or hardware


_MEMORY = re.compile(r"(\d+)[ _-]*gi?b", re.IGNORECASE)
_SALES_SHARE = 0.1
"""By how much the size that a card is sold under may differ from what the driver reports."""


def _of_its_memory(hardware: str, named: dict[str, str]) -> str | None:
    """The name that one with the memory in it means, if the card has so much: `H100 80 GB SXM`."""
    stated = _MEMORY.search(hardware)
    found = named.get(_plain(_MEMORY.sub("", hardware)))
    if stated is None or found is None:
        return None
    memory_gib = _SHEETS[found].memory_gib
    return found if abs(float(stated[1]) / memory_gib - 1) < _SALES_SHARE else None


def form_note(hardware: str) -> str | None:
    """What a report must say of a name that several cards share; None for a name of one card."""
    short = {_plain(name): (name, form) for name, form in _USUAL_FORM.items()}.get(_plain(hardware))
    if hardware in _SHEETS or short is None:
        return None
    name, form = short
    family = name if form.startswith(f"{name}_") else form.partition("_")[0]
    others = [
        one
        for one in _SHEETS
        if one.startswith(f"{family}_") and name.startswith(family) and one != form
    ]
    if name.endswith("gb"):
        others = [one for one in others if _SHEETS[one].memory_gib == _SHEETS[form].memory_gib]
    if not others:
        return None
    return (
        f"hardware: {hardware} is taken to be {form} ({_SHEETS[form].memory_gib:g} GiB);"
        f" there is also {', '.join(others)}"
    )


def _plain(name: str) -> str:
    """Letters and digits alone, without the maker."""
    text = "".join(one for one in name.lower() if one.isalnum())
    for maker in _MAKERS:
        text = text.replace(maker, "")
    return text


def known_hardware() -> list[str]:
    """Names with a built-in data sheet, sorted."""
    return sorted(_SHEETS)


def hardware_sheet(hardware: str) -> HardwareSheet:
    """The data sheet of a known name, or of a YAML file with the fields of `HardwareSheet`.

    Raises: ConfigError with the nearest names, or with the file's missing or unusable field.
    """
    sheet = _SHEETS.get(OTHER_NAMES.get(hardware, hardware))
    if sheet is not None:
        return sheet
    if hardware in SERIES:
        raise ConfigError(f"hardware: {hardware} {SERIES[hardware]}")
    if hardware.lower().endswith((".yaml", ".yml")):
        return _read_sheet(Path(hardware))
    name = hardware.lower().replace("-", "_")
    variants = [sheet for sheet in _SHEETS if name and sheet.startswith(f"{name}_")]
    nearest = variants or difflib.get_close_matches(name, _SHEETS, n=3)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "known: " + ", ".join(_SHEETS)
    raise ConfigError(
        f"hardware: unknown {hardware!r}; {hint} (or give the path of a YAML data sheet)"
    )


def sheet_or_none(hardware: str) -> HardwareSheet | None:
    """The data sheet, or None for hardware that has tables and no sheet (B60)."""
    try:
        return hardware_sheet(hardware)
    except ConfigError:
        return None


def _read_sheet(path: Path) -> HardwareSheet:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"hardware: cannot read the data sheet {path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"hardware: {path}: expected keys and values")
    names = [each.name for each in fields(HardwareSheet) if each.name not in _BUILT_IN_ONLY]
    data.setdefault("name", path.stem)
    data.setdefault("gpus_per_node", 8)
    for key in data:
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise ConfigError(f"hardware: {path}: unknown key {key!r}{hint}")
    data = {key: value for key, value in data.items() if value is not None or key not in _OPTIONAL}
    for name in names:
        if name in _OPTIONAL and name not in data:
            continue
        value = data.get(name)
        if name in _TEXTS:
            if not isinstance(value, str):
                raise ConfigError(f"hardware: {path}: {name}: expected a text, got {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ConfigError(f"hardware: {path}: {name}: expected a number above 0, got {value!r}")
    data.setdefault("cuda_total_gib", derived_cuda_total_gib(data["memory_gib"]))
    return HardwareSheet(**data)
