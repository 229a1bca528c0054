"""The error of recipes."""

from training.support.command import UserError


class ConfigError(UserError):
    """A recipe or an override that cannot be used; the message names the key."""
