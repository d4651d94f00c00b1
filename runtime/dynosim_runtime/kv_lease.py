"""How long a prefill worker holds KV that nobody takes, and how long a frontend relies on that.

A decode worker that has heard of a request renews its lease by itself.
"""

LEASE_S = 60
"""From the prefill's end; what an engine is told."""

MAX_UNCLAIMED_S = 50.0
"""From the prefill worker's answer to the decode request: later, its KV counts as lost."""
