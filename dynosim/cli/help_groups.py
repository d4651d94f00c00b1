"""What `--help` lists: commands in groups, each with its first sentence in full.

A new command gets its place here. One that has none stands under "Commands".
"""

from typing import Any

from typer.core import TyperGroup

GROUPS: dict[str, tuple[str, ...]] = {
    "Simulate": ("init", "run", "sweep", "size", "plan", "diff", "why", "support"),
    "Traces": ("trace",),
    "Live": ("deploy", "serve", "tiny-model"),
    "Trust": (
        "verify",
        "validate",
        "calibrate",
        "rank",
        "plan-cases",
        "replay-log",
        "conformance",
    ),
    "Keys": ("explain", "schema"),
}
"""The commands of `dynosim` by heading, in the order in which they are listed."""

OTHERS = "Commands"
_WHOLE_SENTENCE = 1000


class GroupedCommands(TyperGroup):
    """Commands under the headings of `GROUPS`; typer's own list cuts sentences short."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the lists."""
        known = self.list_commands(ctx)
        width = max(map(len, known), default=0)  # the same under every heading
        for heading, names in _by_heading(known).items():
            rows = [
                (name.ljust(width), self.commands[name].get_short_help_str(_WHOLE_SENTENCE))
                for name in names
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


def _by_heading(names: list[str]) -> dict[str, list[str]]:
    """The commands that are there, by heading; no heading is empty."""
    listed = {name for known in GROUPS.values() for name in known}
    by_heading = {
        heading: [name for name in known if name in names] for heading, known in GROUPS.items()
    }
    by_heading[OTHERS] = [name for name in names if name not in listed]
    return {heading: found for heading, found in by_heading.items() if found}
