"""How a model's own generation_config.json has tokens chosen, by the model's name.

vLLM's server takes temperature, top-k and top-p from there where a request states none
(`--generation-config auto`, its default). Source: that file of each family on the Hugging Face hub:
Llama 2, 3 and 4 state temperature 0.6 and top-p 0.9; Qwen2.5 Instruct, Qwen3 and QwQ top-k and
top-p; DeepSeek V3 and R1 top-p 0.95; Gemma 3 top-k 64. Base models of Qwen, Mistral, Mixtral, Yi
and gpt-oss state neither.
"""

import re

from dynosim.timing.sampler import Sampling

_TRUNCATED = re.compile(
    r"""llama-?[234] | llama-3\.\d | tinyllama.*chat
    | qwen2(\.5)?-.*instruct | qwen3(?!.*-base) | qwq
    | deepseek-(r1|v3) | gemma-3 | yi-.*chat | kimi-k2 | glm-4""",
    re.VERBOSE | re.IGNORECASE,
)


def default_sampling(model: str) -> Sampling:
    """What a server does with requests that say nothing of it, by the model's name.

    A name that is not known is taken to be sampled at a temperature, without top-k and top-p: so
    does vLLM where the file says nothing.
    """
    return "truncated" if _TRUNCATED.search(model.rsplit("/", maxsplit=1)[-1]) else "random"
