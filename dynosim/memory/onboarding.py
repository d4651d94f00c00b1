"""Whether to load what is found in slower tiers, or to compute it again."""

from typing import Protocol


class PrefillEstimate(Protocol):
    """How long a prompt takes to compute."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float:
        """Milliseconds to compute `new_tokens` behind `cached_tokens`."""
        ...


class FasterOnboarding:
    """Loads as much as makes the prompt's last token come first, by times without any queue.

    `setup_ms` and `block_ms` are those of loads, by tier, the nearest first. No fewer than
    `granularity_blocks` are loaded at the end of what is found.
    """

    def __init__(
        self,
        estimate: PrefillEstimate,
        block_size: int,
        setup_ms: list[float],
        block_ms: list[float],
        granularity_blocks: int = 1,
    ) -> None:
        self._estimate = estimate
        self._block_size = block_size
        self._setup_ms = setup_ms
        self._block_ms = block_ms
        self._granularity = granularity_blocks

    def chosen_chunks(
        self, known_tokens: int, local_tokens: int, chunks_by_tier: list[tuple[int, int]]
    ) -> int:
        """See `dynosim.engine.tiers.Onboarding`; what is equally fast is loaded."""
        best, best_ms = 0, self._estimate.predict_ms(known_tokens - local_tokens, local_tokens)
        num_chunks = 0
        tiers: dict[int, float] = {}  # -> how long its copies take
        for tier, number in chunks_by_tier:
            num_chunks += number
            tiers.setdefault(tier, self._setup_ms[tier])
            tiers[tier] += number * self._block_ms[tier]
            whole = num_chunks - num_chunks % self._granularity
            cached = min(local_tokens + whole * self._block_size, known_tokens - 1)
            compute_ms = self._estimate.predict_ms(known_tokens - cached, cached)
            # Tiers are read at the same time, each over a link of its own.
            total_ms = max(tiers.values()) + compute_ms
            if whole and total_ms <= best_ms:
                best, best_ms = whole, total_ms
        return best
