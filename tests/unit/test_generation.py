"""What a model's own generation_config.json asks of the sampler."""

import pytest

from dynosim.silicon.generation import default_sampling


@pytest.mark.parametrize(
    ("model", "sampling"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "truncated"),
        ("meta-llama/Meta-Llama-3-8B", "truncated"),
        ("meta-llama/Llama-2-7b-hf", "truncated"),
        ("RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic", "truncated"),
        ("Qwen/Qwen2.5-7B-Instruct", "truncated"),
        ("Qwen/Qwen2.5-7B", "random"),
        ("Qwen/Qwen3-32B", "truncated"),
        ("Qwen/Qwen3-8B-Base", "random"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "truncated"),
        ("mistralai/Mistral-Nemo-Instruct-2407", "random"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "random"),
        ("01-ai/Yi-34B", "random"),
        ("01-ai/Yi-34B-Chat", "truncated"),
        ("openai/gpt-oss-120b", "random"),
        ("models/mine/config.json", "random"),
    ],
)
def test_models_are_sampled_as_their_own_file_says(model: str, sampling: str) -> None:
    assert default_sampling(model) == sampling
