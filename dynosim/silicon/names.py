"""Other names of accelerators: those that Dynamo's requests and AIConfigurator use."""

OTHER_NAMES = {
    "gb200_sxm": "gb200",
    "gb300_sxm": "gb300",
    "mi300": "mi300x",
}
"""From the name that may be written to the one of the data sheet."""

SERIES = {
    "mi200": "is a series of cards with different memories and links; mi210 has a data sheet. For "
    "MI250 and MI250X, whose two dies are two GPUs, write one of a die: memory_gib, "
    "memory_gb_per_s, bf16_tflops, fp8_tflops, link_gb_per_s and gpus_per_node, in a YAML file "
    "whose path is the hardware",
}
"""Names of more than one card, and what to write instead."""
