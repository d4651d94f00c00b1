"""Decides which worker serves a request. Pure: no clock, no I/O, randomness handed in."""
