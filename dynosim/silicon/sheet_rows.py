"""The figures of accelerators, one row a card, with the source of each.

Rates are the makers', dense and per GPU, at boost clock; for GeForce cards those of tensor cores
with 32-bit accumulation, which models are served with, and which GeForce has at half rate (integers
and FP4 are at full rate). T4 and V100 have no bf16, the rate is that of fp16. The figures were read
in quotations of the makers' sheets and in AIConfigurator's system files, and are derived a second
time in tests from multiprocessors, clocks and bus widths.

`memory_gib` is what the driver lists (nvidia-smi and rocm-smi, with error correction where it is on
by default), not the sales figure, and not what CUDA reports as total: see `cuda_totals`.

Link rates are per GPU and direction: NVLink 2 150, NVLink 3 300, NVLink 4 450, NVLink 5 900 GB/s;
A800 and H800, made for export, 200 GB/s (H20, also for export, has the 450); a link of Infinity
Fabric 64 GB/s; PCIe gen 3 x16 16, gen 4 x16 32, gen 5 x16 64 GB/s. Bridges of workstation cards
and of the MI210 are an option and not counted; that of the H100 NVL is how the card is sold, and
joins two.
"""

from typing import NamedTuple


class SheetRow(NamedTuple):
    """One card, see the module's text and `timing.sheets.HardwareSheet` for what each means."""

    memory_gib: float
    memory_gb_per_s: float
    bf16_tflops: float
    fp8_tflops: float
    int8_tops: float | None
    fp4_tflops: float | None
    link_gb_per_s: float
    source: str


_ROW = SheetRow
_PRO_6000 = "RTX PRO Blackwell white paper, table 4"

ROWS = {
    "t4": _ROW(15.0, 320, 65, 65, 130, None, 16, "T4 data sheet"),
    "v100_pcie": _ROW(32.0, 900, 112, 112, None, None, 16, "V100 data sheet"),
    "v100_pcie_16gb": _ROW(16.0, 900, 112, 112, None, None, 16, "V100 data sheet"),
    "v100_sxm": _ROW(32.0, 900, 125, 125, None, None, 150, "V100 data sheet"),
    "v100_sxm_16gb": _ROW(16.0, 900, 125, 125, None, None, 150, "V100 data sheet"),
    "a10": _ROW(22.5, 600, 125, 125, 250, None, 32, "A10 data sheet"),
    "a10g": _ROW(
        22.5, 600, 70, 70, 140, None, 32, "AWS's table of G5 instances; 80 SMs at half rate"
    ),
    "a30": _ROW(24.0, 933, 165, 165, 330, None, 32, "A30 data sheet; AIConfigurator"),
    "a40": _ROW(45.0, 696, 150, 150, 299, None, 32, "A40 data sheet"),
    "a100_pcie": _ROW(
        80.0, 1935, 312, 312, 624, None, 32, "A100 data sheet; AIConfigurator"
    ),
    "a100_pcie_40gb": _ROW(40.0, 1555, 312, 312, 624, None, 32, "A100 data sheet"),
    "a100_sxm": _ROW(
        80.0, 2039, 312, 312, 624, None, 300, "A100 data sheet; AIConfigurator"
    ),
    "a100_sxm_40gb": _ROW(40.0, 1555, 312, 312, 624, None, 300, "A100 data sheet"),
    "a800_sxm": _ROW(
        80.0, 2039, 312, 312, 624, None, 200, "A100 data sheet; link as the H800's"
    ),
    "l4": _ROW(22.5, 300, 121, 242, 242, None, 32, "L4 data sheet; AIConfigurator"),
    "l20": _ROW(45.0, 864, 119.5, 239, 239, None, 32, "two public tables; 92 SMs"),
    "l40": _ROW(45.0, 864, 181, 362, 362, None, 32, "L40 data sheet"),
    "l40s": _ROW(45.0, 864, 362, 733, 733, None, 32, "L40S data sheet; AIConfigurator"),
    "h20": _ROW(95.6, 4000, 148, 296, 296, None, 450, "H20 data sheet"),
    "h20_141gb": _ROW(
        140.4, 4800, 148, 296, 296, None, 450, "H20 data sheet; memory of the H200 (H20-3e)"
    ),
    "h800_sxm": _ROW(
        79.6, 3350, 989, 1979, 1979, None, 200, "H100 data sheet; NVLink of the H800's"
    ),
    "h100_pcie": _ROW(
        79.6, 2000, 756, 1513, 1513, None, 64, "H100 white paper; AIConfigurator"
    ),
    "h100_nvl": _ROW(93.6, 3938, 835, 1671, 1671, None, 300, "H100 data sheet (NVL)"),
    "h100_sxm": _ROW(
        79.6, 3350, 989, 1979, 1979, None, 450, "H100 data sheet; AIConfigurator"
    ),
    "h200_sxm": _ROW(
        140.4, 4800, 989, 1979, 1979, None, 450, "H200 data sheet; AIConfigurator"
    ),
    "gh200": _ROW(95.6, 4000, 989, 1979, 1979, None, 450, "GH200 data sheet (96 GB)"),
    "gh200_144gb": _ROW(143.4, 4900, 989, 1979, 1979, None, 450, "GH200 data sheet"),
    # The full chip has 8 TB/s; these cards list a bus of 7680 of its 8192 bits.
    "b200_sxm": _ROW(
        179.0, 7700, 2250, 4500, 4500, 9000, 900, "HGX B200 data sheet; AIConfigurator"
    ),
    "b300_sxm": _ROW(
        268.6, 7700, 2250, 4500, 153.5, 13500, 900,
        "HGX B300 data sheet (108 PFLOPS of FP4 over 8); AIConfigurator",
    ),
    # Nominal: cards list buses of 7936 and 8064 bits, within 1 % of it.
    "gb200": _ROW(
        185.0, 8000, 2500, 5000, 5000, 10000, 900, "GB200 NVL72 data sheet; AIConfigurator"
    ),
    "gb300": _ROW(
        277.5, 8000, 2500, 5000, 165, 15000, 900, "GB300 NVL72 data sheet; AIConfigurator"
    ),
    "mi210": _ROW(64.0, 1638, 181, 181, 181, None, 32, "MI210 data sheet"),
    "mi300x": _ROW(192.0, 5325, 1307, 2615, 2615, None, 448, "MI300X data sheet"),
    "rtx_3090": _ROW(24.0, 936, 71, 71, 284, None, 32, "GA102 white paper"),
    "rtx_4080": _ROW(16.0, 717, 97.5, 195, 390, None, 32, "Ada white paper"),
    "rtx_4090": _ROW(24.0, 1008, 165, 330, 661, None, 32, "Ada white paper"),
    "rtx_5080": _ROW(15.9, 960, 112.6, 225, 450, 900, 64, "RTX Blackwell white paper"),
    "rtx_5090": _ROW(
        31.8, 1792, 209.5, 419, 838, 1676, 64, "RTX Blackwell white paper, table 3"
    ),
    "rtx_a5000": _ROW(24.0, 768, 111, 111, 222, None, 32, "GA102 white paper (RTX A5000)"),
    "rtx_a6000": _ROW(48.0, 768, 155, 155, 310, None, 32, "GA102 white paper (RTX A6000)"),
    "rtx_5000_ada": _ROW(32.0, 576, 261, 522, 522, None, 32, "RTX 5000 Ada data sheet"),
    "rtx_6000_ada": _ROW(48.0, 960, 364, 728, 728, None, 32, "Ada white paper (RTX 6000)"),
    "rtx_pro_6000_workstation": _ROW(
        95.6, 1792, 504, 1007, 1007, 2015, 64, _PRO_6000
    ),
    # The sheet's FP32 rate of 120 TFLOPS would give 480; the card lists 2430 MHz at most.
    "rtx_pro_6000_server": _ROW(
        95.6, 1597, 468, 936, 936, 1871, 64,
        "RTX PRO 6000 Server data sheet (memory); 188 SMs at 2430 MHz, AIConfigurator (rates)",
    ),
}  # fmt: skip

NODES = {
    "gh200": (1, None),
    "gh200_144gb": (1, None),
    "gb200": (4, 72),
    "gb300": (4, 72),
}
"""GPUs of a node, and those that NVLink joins where these are more; others are built by eight.

Sources: AIConfigurator's system files (GB200, GB300); a GH200 is sold as a node of one, the link
counts in machines that join two or 32 of them.
"""

LINKS_BY_GPUS = {
    "h100_nvl": ((2, 300.0), (8, 64.0)),  # a bridge joins a pair, more cross PCIe gen 5
    "mi300x": tuple((gpus, 64.0 * (gpus - 1)) for gpus in range(2, 9)),  # a link to each other GPU
}
"""Up to so many GPUs, GB/s of one of them: where the rate depends on how many take part."""

WITHOUT_PEER_ACCESS = ("rtx_3090", "rtx_4080", "rtx_4090", "rtx_5080", "rtx_5090")
"""GeForce: NVIDIA's driver has no peer-to-peer over PCIe for them."""
