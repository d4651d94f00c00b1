"""One configuration to one report, and the intervals around it."""
