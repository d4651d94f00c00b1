"""Workloads in columns: trace readers and writers, synthetic generators, statistics.

A workload is one `dynosim.records.Trace`. This package knows files and distributions; it knows
nothing of engines, clusters or clocks.
"""
