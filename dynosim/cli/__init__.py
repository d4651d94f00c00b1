"""The command line: a module per command, thin; `entry` knows their arguments."""

from dynosim.cli.entry import main

__all__ = ["main"]
