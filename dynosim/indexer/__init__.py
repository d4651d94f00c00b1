"""Knows which worker holds which KV blocks. Pure: events in, overlaps out."""
