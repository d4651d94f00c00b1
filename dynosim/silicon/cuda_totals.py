"""What CUDA (HIP) reports as a GPU's total memory: the figure that engines take their fraction of.

Source: `torch.cuda.mem_get_info`, as out-of-memory messages print it ("total capacity of"), the
middle where drivers differ. Such messages rarely name the card: one stands for all cards of its
size and generation (A10, A10G and L4; A40, L20, L40 and L40S; RTX A6000 and 6000 Ada). Cards
without one are not here, theirs is derived (`timing.sheets.derived_cuda_total_gib`).
"""

CUDA_TOTAL_GIB = {
    "t4": 14.57,
    "v100_pcie": 31.73,
    "v100_pcie_16gb": 15.78,
    "v100_sxm": 31.73,
    "v100_sxm_16gb": 15.78,
    "a10": 22.09,
    "a10g": 22.09,
    "a30": 23.53,
    "a40": 44.43,
    "a100_pcie": 79.2,
    "a100_pcie_40gb": 39.49,
    "a100_sxm": 79.2,
    "a100_sxm_40gb": 39.49,
    "l4": 22.09,
    "l20": 44.43,
    "l40": 44.43,
    "l40s": 44.43,
    "h100_nvl": 93.1,
    "h100_sxm": 79.18,
    "h200_sxm": 139.8,
    "gh200": 94.5,
    "gh200_144gb": 142.5,
    "b200_sxm": 178.35,
    "b300_sxm": 267.69,
    "gb200": 184.31,
    "gb300": 276.5,
    "mi210": 63.98,
    "mi300x": 191.98,
    "rtx_3090": 23.67,
    "rtx_4080": 15.58,
    "rtx_4090": 23.67,
    "rtx_5080": 15.48,
    "rtx_5090": 31.36,
    "rtx_a6000": 47.47,
    "rtx_6000_ada": 47.47,
    "rtx_pro_6000_workstation": 94.97,
    "rtx_pro_6000_server": 94.97,
}
