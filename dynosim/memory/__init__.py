"""What moving KV cache takes: links, how transfers share them, what a handoff costs.

Pure: no clock, no I/O, no randomness, no configuration.
"""
