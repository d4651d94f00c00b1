"""Number formats of weights: what one takes in memory, and what matrix products compute in.

Names are those that configs, vLLM and aiconfigurator write, in any case. A name that is not known
counts as FP8: a byte a weight, computed at FP8's rate.
"""

BF16, FP8, INT8, FP4 = "bf16", "fp8", "int8", "fp4"

_SIXTEEN_BITS = ("bf16", "bfloat16", "fp16", "float16", "half", "auto", "none")
_GROUP_OF_128 = 0.5 + 2 / 128
"""4 bits, and a scale of 16 bits for each 128 weights: the usual group of GPTQ and compressed
integers, whose zero point is a constant."""
_AWQ = _GROUP_OF_128 + 0.5 / 128
"""AWQ keeps a zero point of 4 bits as well."""
_NVFP4 = 0.5 + 1 / 16  # a scale of 8 bits for each 16 weights
_MXFP4 = 0.5 + 1 / 32  # a scale of 8 bits for each 32 weights

_INTEGERS = ("int8", "sq", "int8_sq", "w8a8", "w8a8_int8", "w8a8_sq_per_channel")
_EIGHT_BITS_ALONE = ("int8_wo", "w8a16", "fp8_wo")
_FOUR_BITS = ("int4", "w4a16", "int4_wo", "gptq", "awq", "bitsandbytes", "nf4")
_FOUR_BITS_IN_FP8 = ("w4afp8", "w4a8", "w4a8_awq")


def weight_element_bytes(quantisation: str | None) -> float:
    """Bytes per weight, scales included."""
    name = _plain(quantisation)
    if name in _SIXTEEN_BITS:
        return 2.0
    if "mxfp4" in name:
        return _MXFP4
    if "fp4" in name:
        return _NVFP4
    if name in ("awq", "w4a8_awq"):
        return _AWQ
    if name in _FOUR_BITS or name in _FOUR_BITS_IN_FP8:
        return _GROUP_OF_128
    return 1.0


def compute_format(quantisation: str | None) -> str:
    """What matrix products compute in with such weights: bf16, fp8, int8 or fp4.

    4-bit integers and MXFP4 are widened to 16 bits in the kernel, with activations of 16 bits;
    only NVFP4 quantises the activations as well and uses the tensor cores' FP4.
    """
    name = _plain(quantisation)
    if name in _SIXTEEN_BITS or name in _FOUR_BITS or name in _EIGHT_BITS_ALONE:
        return BF16
    if "fp4" in name:
        if "mxfp8" in name or "a8" in name:
            return FP8
        is_weights_alone = "a16" in name or name.endswith("_wo") or "mxfp4" in name
        return BF16 if is_weights_alone else FP4
    return INT8 if name in _INTEGERS else FP8


def _plain(quantisation: str | None) -> str:
    """The format's name without the kernel's: awq_marlin is awq."""
    name = (quantisation or "none").lower()
    return name.removesuffix("_marlin").removesuffix("_marlin_24")
