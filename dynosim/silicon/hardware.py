"""Data sheets of accelerators, by the SKU names that aiconfigurator and Dynamo use.

Sources: NVIDIA's data sheets of each product (dense rates without sparsity, per GPU, boost clock);
`memory_gib` is what the driver reports (nvidia-smi), not the sales figure. Link rates are per GPU
and direction: NVLink 3 300, NVLink 4 450, NVLink 5 900 GB/s; PCIe gen 4 x16 32, gen 5 x16 64 GB/s.
"""

import difflib
from dataclasses import fields
from pathlib import Path

from dynosim.errors import ConfigError
from dynosim.timing.sheets import HardwareSheet


def _sheet(
    name: str, memory_gib: float, memory_gb_per_s: float, bf16: float, fp8: float, link: float
) -> HardwareSheet:
    return HardwareSheet(
        name=name,
        memory_gib=memory_gib,
        memory_gb_per_s=memory_gb_per_s,
        bf16_tflops=bf16,
        fp8_tflops=fp8,
        link_gb_per_s=link,
    )


_SHEETS = {
    sheet.name: sheet
    for sheet in (
        _sheet("a10g", 22.5, 600, 70, 70, 32),
        _sheet("a30", 24.0, 933, 165, 165, 32),
        _sheet("a100_pcie", 80.0, 1935, 312, 312, 32),
        _sheet("a100_sxm", 80.0, 2039, 312, 312, 300),
        _sheet("l4", 22.5, 300, 121, 242, 32),
        _sheet("l40s", 45.0, 864, 362, 733, 32),
        _sheet("h100_pcie", 79.6, 2000, 756, 1513, 64),
        _sheet("h100_sxm", 79.6, 3350, 989, 1979, 450),
        _sheet("h200_sxm", 140.4, 4800, 989, 1979, 450),
        _sheet("b200_sxm", 179.0, 8000, 2250, 4500, 900),
        _sheet("b300_sxm", 268.6, 8000, 2250, 4500, 900),
        _sheet("gb200", 185.0, 8000, 2500, 5000, 900),
        _sheet("gb300", 277.5, 8000, 2500, 5000, 900),
        _sheet("rtx_pro_6000_server", 95.6, 1597, 500, 1000, 64),
    )
}


def known_hardware() -> list[str]:
    """Names with a built-in data sheet, sorted."""
    return sorted(_SHEETS)


def hardware_sheet(hardware: str) -> HardwareSheet:
    """The data sheet of a known name, or of a YAML file with the fields of `HardwareSheet`.

    Raises: ConfigError with the nearest names, or with the file's missing or unusable field.
    """
    sheet = _SHEETS.get(hardware)
    if sheet is not None:
        return sheet
    if hardware.lower().endswith((".yaml", ".yml")):
        return _read_sheet(Path(hardware))
    nearest = difflib.get_close_matches(hardware.lower().replace("-", "_"), _SHEETS, n=3)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "known: " + ", ".join(_SHEETS)
    raise ConfigError(
        f"hardware: unknown {hardware!r}; {hint} (or give the path of a YAML data sheet)"
    )


def _read_sheet(path: Path) -> HardwareSheet:
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise ConfigError(f"hardware: {path}: {name}: expected a number above 0, got {value!r}")
    return HardwareSheet(**data)
