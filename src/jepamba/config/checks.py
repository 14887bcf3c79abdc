"""`ConfigError`, and the check that raises it."""

from __future__ import annotations

from jepamba.errors import UserError


class ConfigError(UserError):
    """A setting or a combination of settings is refused. The message is one line for the user."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
