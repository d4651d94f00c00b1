"""Which kernel computes attention on which GPU, as vLLM chooses unless told otherwise."""

from dynosim.timing.mixed import FLASH_ATTENTION_2, FLASH_ATTENTION_3, SharedKernel

_HOPPER = ("h100", "h200", "h800", "h20", "gh200")
_TWO_KERNELS = ("b200", "b300", "gb200", "gb300", "mi", "v100", "t4")
"""Data-centre Blackwell: FlashInfer, which takes decodes apart from prompts. AMD: Triton, with
small tiles. Before Ampere: no FlashAttention."""


def shared_kernel(hardware: str, backend: str) -> SharedKernel | None:
    """The kernel that computes prompts and decodes of a step together; None if two do.

    Source: vLLM's `_get_backend_priorities`: FlashInfer first on compute capability 10, else
    FlashAttention, of version 3 on 9. SGLang and TensorRT-LLM plan prompts and decodes apart.
    """
    if backend != "vllm" or hardware.startswith(_TWO_KERNELS):
        return None
    return FLASH_ATTENTION_3 if hardware.startswith(_HOPPER) else FLASH_ATTENTION_2
