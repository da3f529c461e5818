"""Measurements with bars; each module is a command, `python -m benchmarks.NAME [--json]`."""
