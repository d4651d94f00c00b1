"""The frontend's metrics, as its page tells them, and as controllers take them."""

from math import isfinite

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import sample_name
from dynosim.planner.observation import Scrape
from dynosim_runtime.errors import LiveError

SCRAPE_TIMEOUT_S = 5.0
OK = 200


def parse_samples(text: str) -> dict[str, float]:
    """Value by sample name, see `Scrape`; what is no number is left out.

    Raises: ValueError if it is no such text.
    """
    return {
        sample_name(sample.name, sample.labels): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if isfinite(sample.value)
    }


async def scrape(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """The samples of a frontend's page. Raises: LiveError that says why there are none."""
    page = f"{url}/metrics"
    try:
        async with session.get(page, timeout=aiohttp.ClientTimeout(SCRAPE_TIMEOUT_S)) as answer:
            text = await answer.text()
            if answer.status != OK:
                raise LiveError(f"{page}: status {answer.status}")
            return parse_samples(text)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise LiveError(f"{page}: {str(error) or type(error).__name__}") from None


def mean_prompt_tokens(scrape: Scrape | None) -> float | None:
    """Tokens of a prompt, on average over the frontend's life; None: nobody came yet."""
    if scrape is None:
        return None
    total = _sum(scrape, f"{names.INPUT_TOKENS}_sum")
    count = _sum(scrape, f"{names.INPUT_TOKENS}_count")
    return total / count if count else None


def _sum(scrape: Scrape, name: str) -> float:
    return sum(value for key, value in scrape.values.items() if key.partition("{")[0] == name)
