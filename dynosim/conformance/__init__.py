"""Runs scheduler scenarios through our engine core and compares step logs with recorded ones.

A scenario is a small workload with an engine configuration; a golden file is what vLLM's own
scheduler did with it, step by step.
"""

from dynosim.conformance.drive import run_scenario
from dynosim.conformance.log import first_difference, format_log

__all__ = ["first_difference", "format_log", "run_scenario"]
