"""The run-time type checker that the tests install: beartype, where an int is a fine float, as for mypy (PEP 484)."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
