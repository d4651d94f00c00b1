"""Other names of accelerators: those that Dynamo's requests and AIConfigurator use."""

OTHER_NAMES = {
    "gb200_sxm": "gb200",
    "gb300_sxm": "gb300",
    "mi300": "mi300x",
}
"""From the name that may be written to the one of the data sheet."""

DEVICE_NAMES = {
    "a100_pcie_80gb": "a100_pcie",
    "a100_80gb_pcie": "a100_pcie",
    "a100_sxm4_40gb": "a100_sxm_40gb",
    "a100_sxm4_80gb": "a100_sxm",
    "b300_sxm6_ac": "b300_sxm",
    "gh200_144g_hbm3e": "gh200_144gb",
    "gh200_480gb": "gh200",  # of the host's memory
    "h100_80gb_hbm3": "h100_sxm",
    "h20_3e": "h20_141gb",
    "rtx_5000_ada_generation": "rtx_5000_ada",
    "rtx_6000_ada_generation": "rtx_6000_ada",
    "rtx_pro_6000_blackwell_server_edition": "rtx_pro_6000_server",
    "rtx_pro_6000_blackwell_workstation_edition": "rtx_pro_6000_workstation",
    "v100_pcie_32gb": "v100_pcie",
    "v100_sxm2_16gb": "v100_sxm_16gb",
    "v100_sxm2_32gb": "v100_sxm",
}
"""From what the driver calls a card (without its maker) to the name of the data sheet."""

SERIES = {
    "mi200": "is a series of cards with different memories and links; mi210 has a data sheet. For "
    "MI250 and MI250X, whose two dies are two GPUs, write one of a die: memory_gib, "
    "memory_gb_per_s, bf16_tflops, fp8_tflops, link_gb_per_s and gpus_per_node, in a YAML file "
    "whose path is the hardware",
}
"""Names of more than one card, and what to write instead."""
