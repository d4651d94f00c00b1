"""Power of accelerators, for estimates of energy.

`TDP_W` are the limits of the makers' data sheets, as shipped. `IDLE_W` is what a card draws with a
loaded model and no work, where measurements have been published (means of their ranges); for others
it is `IDLE_SHARE` of the limit, as it is for those that were measured.
"""

TDP_W = {
    "t4": 70,
    "v100_pcie": 250,
    "v100_pcie_16gb": 250,
    "v100_sxm": 300,
    "v100_sxm_16gb": 300,
    "a10": 150,
    "a30": 165,
    "a40": 300,
    "a100_pcie": 300,
    "a100_pcie_40gb": 250,
    "a100_sxm": 400,
    "a100_sxm_40gb": 400,
    "a800_sxm": 400,
    "l4": 72,
    "l20": 275,
    "l40": 300,
    "l40s": 350,
    "h20": 400,
    "h800_sxm": 700,
    "h100_pcie": 350,
    "h100_nvl": 400,
    "h100_sxm": 700,
    "h200_sxm": 700,
    "b200_sxm": 1000,
    "b300_sxm": 1100,
    "gb200": 1200,
    "gb300": 1400,
    "mi210": 300,
    "mi300x": 750,
    "rtx_3090": 350,
    "rtx_4080": 320,
    "rtx_4090": 450,
    "rtx_5080": 360,
    "rtx_5090": 575,
    "rtx_a5000": 230,
    "rtx_a6000": 300,
    "rtx_5000_ada": 250,
    "rtx_6000_ada": 300,
    "rtx_pro_6000_workstation": 600,
    "rtx_pro_6000_server": 600,
}
IDLE_W = {"h100_sxm": 95, "h200_sxm": 77}
IDLE_SHARE = 0.12


def idle_w(name: str) -> float | None:
    """What an accelerator draws without work; None where its limit is not known."""
    limit = TDP_W.get(name)
    if limit is None:
        return None
    return float(IDLE_W.get(name, IDLE_SHARE * limit))
