"""The type checker that pytest puts around every function of the three packages."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""Checks arguments and results; an `int` passes for a `float`, as it does for type checkers."""
