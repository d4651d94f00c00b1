"""How long a frontend relies on KV that a prefill worker holds and nobody has taken yet.

The engine holds it for longer, `KV_LEASE_S`; a decode worker that has heard of a request renews
that lease by itself.
"""

MAX_UNCLAIMED_S = 50.0
"""From the prefill worker's answer to the decode request: later, its KV counts as lost."""
