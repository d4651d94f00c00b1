"""A routing strategy of one's own, over a deployment that runs: `dynosim deploy run.yaml --mock`.

    python examples/own_strategy.py run.yaml file:deployments/NAME/discovery

Past 8,192 tokens cached blocks count in full, else by half; and a prompt is not sent to a chosen
worker where more than `MOST_TOKENS` prompt tokens would be in flight: the router decides then.
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from dynosim.config import load_run
from dynosim_runtime.serving.router_client import RouterClient

LONG_PROMPT = 8192
MOST_TOKENS = 100_000


async def choose(router: RouterClient, token_ids: Sequence[int]) -> int | None:
    """The worker for a prompt; None: as the router says, all are loaded alike."""
    credit = 1.0 if len(token_ids) > LONG_PROMPT else 0.5
    override = {"overlap_score_credit": credit}
    best, _, _ = await router.best_worker(token_ids, router_config_override=override)
    loads = await router.get_potential_loads(token_ids)
    heavy = {row["worker_id"] for row in loads if row["potential_prefill_tokens"] > MOST_TOKENS}
    return None if best in heavy else best


async def answer(router: RouterClient, token_ids: Sequence[int]) -> list[int]:
    """The tokens of an answer, from the worker that the strategy chooses."""
    worker_id = await choose(router, token_ids)
    tokens: list[int] = []
    async for delta in router.generate(token_ids, worker_id=worker_id, max_tokens=8):
        tokens += delta.token_ids
    return tokens


async def main(plan: Path, discovery: str) -> None:
    """Ask twice for the same prompt: the second time it is cached somewhere."""
    async with RouterClient(load_run(plan), discovery=discovery) as router:
        await router.wait_for_workers()
        for _ in range(2):
            print(await answer(router, list(range(200))))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
