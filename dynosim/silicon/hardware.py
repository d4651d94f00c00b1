"""Data sheets of accelerators, by the SKU names that aiconfigurator and Dynamo use.

Sources: the makers' data sheets of each product (dense rates without sparsity, per GPU, boost
clock), and for GeForce cards the tables of the white papers on GA102, Ada and RTX Blackwell: tensor
cores with 32-bit accumulation, which models are served with, and which GeForce has at half rate. T4
and V100 have no bf16, the rate is that of fp16. `memory_gib` is what the driver reports (nvidia-smi
and rocm-smi, with error correction where it is on by default), not the sales figure. Link rates are
per GPU and direction: NVLink 2 150, NVLink 3 300, NVLink 4 450, NVLink 5 900 GB/s, 200 GB/s for
export models, seven Infinity Fabric links of 64 GB/s for the MI300X; PCIe gen 3 x16 16, gen 4 x16
32, gen 5 x16 64 GB/s. Bridges of workstation cards and of the MI210 are an option and not counted.
"""

import difflib
import re
from dataclasses import fields
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.files.user_text import parse_yaml
from dynosim.silicon.cuda_totals import CUDA_TOTAL_GIB
from dynosim.silicon.names import OTHER_NAMES, SERIES
from dynosim.silicon.power import TDP_W, idle_w
from dynosim.timing.sheets import HardwareSheet, derived_cuda_total_gib


def _sheet(
    name: str, memory_gib: float, memory_gb_per_s: float, bf16: float, fp8: float, link: float
) -> HardwareSheet:
    return HardwareSheet(
        name=name,
        memory_gib=memory_gib,
        cuda_total_gib=CUDA_TOTAL_GIB.get(name) or derived_cuda_total_gib(memory_gib),
        memory_gb_per_s=memory_gb_per_s,
        bf16_tflops=bf16,
        fp8_tflops=fp8,
        link_gb_per_s=link,
        tdp_w=TDP_W.get(name),
        idle_w=idle_w(name),
    )


_SHEETS = {
    sheet.name: sheet
    for sheet in (
        _sheet("t4", 15.0, 320, 65, 65, 16),
        _sheet("v100_pcie", 32.0, 900, 112, 112, 16),
        _sheet("v100_sxm", 32.0, 900, 125, 125, 150),
        _sheet("a10", 22.5, 600, 125, 125, 32),
        _sheet("a10g", 22.5, 600, 70, 70, 32),
        _sheet("a30", 24.0, 933, 165, 165, 32),
        _sheet("a40", 45.0, 696, 150, 150, 32),
        _sheet("a100_pcie", 80.0, 1935, 312, 312, 32),
        _sheet("a100_sxm", 80.0, 2039, 312, 312, 300),
        _sheet("a800_sxm", 80.0, 2039, 312, 312, 200),
        _sheet("l4", 22.5, 300, 121, 242, 32),
        _sheet("l20", 45.0, 864, 119.5, 239, 32),
        _sheet("l40", 45.0, 864, 181, 362, 32),
        _sheet("l40s", 45.0, 864, 362, 733, 32),
        _sheet("h20", 95.6, 4000, 148, 296, 450),
        _sheet("h800_sxm", 79.6, 3350, 989, 1979, 200),
        _sheet("h100_pcie", 79.6, 2000, 756, 1513, 64),
        _sheet("h100_nvl", 93.6, 3938, 835, 1671, 300),
        _sheet("h100_sxm", 79.6, 3350, 989, 1979, 450),
        _sheet("h200_sxm", 140.4, 4800, 989, 1979, 450),
        _sheet("gh200", 95.6, 4000, 989, 1979, 450),
        _sheet("b200_sxm", 179.0, 8000, 2250, 4500, 900),
        _sheet("b300_sxm", 268.6, 8000, 2250, 4500, 900),
        _sheet("gb200", 185.0, 8000, 2500, 5000, 900),
        _sheet("gb300", 277.5, 8000, 2500, 5000, 900),
        _sheet("mi210", 64.0, 1638, 181, 181, 32),
        _sheet("mi300x", 192.0, 5325, 1307, 2615, 448),
        _sheet("rtx_3090", 24.0, 936, 71, 71, 32),
        _sheet("rtx_4080", 16.0, 717, 97.5, 195, 32),
        _sheet("rtx_4090", 24.0, 1008, 165, 330, 32),
        _sheet("rtx_5080", 15.9, 960, 112.6, 225, 64),
        _sheet("rtx_5090", 31.8, 1792, 209.5, 419, 64),
        _sheet("rtx_a5000", 24.0, 768, 111, 111, 32),
        _sheet("rtx_a6000", 48.0, 768, 155, 155, 32),
        _sheet("rtx_5000_ada", 32.0, 576, 261, 522, 32),
        _sheet("rtx_6000_ada", 48.0, 960, 364, 728, 32),
        _sheet("rtx_pro_6000_workstation", 95.6, 1792, 504, 1007, 64),
        _sheet("rtx_pro_6000_server", 95.6, 1597, 500, 1000, 64),
    )
}


_USUAL_FORM = {
    "a100": "a100_sxm",
    "a6000": "rtx_a6000",
    "a800": "a800_sxm",
    "b200": "b200_sxm",
    "b300": "b300_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "h800": "h800_sxm",
    "rtx_pro_6000": "rtx_pro_6000_server",
    "v100": "v100_sxm",
}
"""What a name without the form stands for."""

_OPTIONAL = ("cuda_total_gib", "tdp_w", "idle_w")
"""What a data sheet need not tell: the total is derived, without the power no energy is estimated."""
_MAKERS = ("nvidia", "geforce", "tesla")


def usual_name(hardware: str) -> str:
    """The built-in name that another spelling means: `RTX 4090` is rtx_4090, H100 h100_sxm.

    Anything else comes back as it is, for `hardware_sheet` to refuse or to open.
    """
    if hardware in _SHEETS:
        return hardware
    hardware = OTHER_NAMES.get(hardware, hardware)
    named = {_plain(name): name for name in _SHEETS}
    named |= {_plain(short): name for short, name in _USUAL_FORM.items()}
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


def _read_sheet(path: Path) -> HardwareSheet:
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"hardware: cannot read the data sheet {path}: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"hardware: {path}: expected keys and values")
    names = [field.name for field in fields(HardwareSheet)]
    data.setdefault("name", path.stem)
    data.setdefault("gpus_per_node", 8)
    for key in data:
        if key not in names:
            nearest = difflib.get_close_matches(str(key), names, n=1)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            raise ConfigError(f"hardware: {path}: unknown key {key!r}{hint}")
    for name in names[1:]:
        value = data.get(name)
        if value is None and name in _OPTIONAL:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ConfigError(f"hardware: {path}: {name}: expected a number above 0, got {value!r}")
    data.setdefault("cuda_total_gib", derived_cuda_total_gib(data["memory_gib"]))
    return HardwareSheet(**data)
