"""What of the plan's `live:` section reaches a frontend's application."""

from pathlib import Path

import pytest
from http_support import MODEL, client_of

from dynosim.config.loading import run_config_from_dict
from dynosim_runtime.discovery.make import make_discovery
from dynosim_runtime.serving.command import FrontendProcess
from dynosim_runtime.tokenize.byte_tokenizer import ByteTokenizer

BILLING = "x-anthropic-billing-header: cc_version=1; cch=abc==;"


@pytest.mark.parametrize("is_stripped", [True, False])
async def test_a_billing_line_is_no_part_of_the_prompt_if_so_configured(
    tmp_path: Path, is_stripped: bool
) -> None:
    config = run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "engine": {"num_gpu_blocks": 100, "max_model_len": 64},
            "timing": {"kind": "polynomial"},
            "live": {"port": 0, "strip_anthropic_preamble": is_stripped},
        }
    )
    frontend = FrontendProcess(
        config,
        model=MODEL,
        tokenizer=ByteTokenizer(),
        discovery=make_discovery(f"file:{tmp_path}", 5.0),
        out=None,
    )
    async with frontend._wired() as (_, app):
        frontend._models.add(MODEL, ByteTokenizer(), 4096)
        async with client_of(app) as client:  # type: ignore[arg-type]
            counts = [
                (
                    await client.post(
                        "/v1/messages/count_tokens",
                        json={
                            "model": MODEL,
                            "messages": [{"role": "user", "content": "hi"}],
                            "system": system,
                        },
                    )
                ).json()["input_tokens"]
                for system in (f"{BILLING}\nYou are", "You are")
            ]
    frontend._socket.close()
    assert (counts[0] == counts[1]) is is_stripped
