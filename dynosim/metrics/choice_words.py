"""Why a router chose a worker, in words."""

from dynosim.router.witness import SeenChoice


def choice_words(choice: SeenChoice, decided_by: str) -> str:
    """Why the chosen candidate won; `decided_by` is the router's mode, or its policy's name.

    Only the `kv` mode goes by costs; what others go by is their name.
    """
    options = choice.options
    chosen = next(option for option in options if option.slot == choice.slot)
    rivals = [option for option in options if option.slot != choice.slot]
    if not rivals:
        return "it was the only candidate"
    if decided_by != "kv":
        return f"{decided_by} chose it"
    most = max(option.cached_tokens for option in rivals)
    lowest = min(option.cost for option in rivals)
    if chosen.cost > lowest:
        return f"the router drew it at cost {chosen.cost:,.0f}, the lowest was {lowest:,.0f}"
    if chosen.cached_tokens > most:
        return f"the router sent it there for {chosen.cached_tokens:,} cached tokens{_than(most)}"
    if chosen.cost == lowest:
        return "the router drew it among equally cheap ones"
    highest = max(option.cost for option in rivals)
    elsewhere = f"{lowest:,.0f}" if lowest == highest else f"{lowest:,.0f} to {highest:,.0f}"
    return (
        f"the router sent it there as the least loaded (cost {chosen.cost:,.0f} blocks, "
        f"{elsewhere} elsewhere)"
    )


def _than(most: int) -> str:
    return f" (at most {most:,} elsewhere)" if most else ""
