"""From method and path to a handler: some twenty exact paths, so a dict is the router."""

from __future__ import annotations

from gateway.openai_api.errors import MethodNotAllowed, NotFound
from gateway.openai_api.words import Call, Handler, Routes


class Router:
    """Finds the handler of a call.

    Args:
        tables: routes; later tables must not repeat a route of earlier ones.
    """

    def __init__(self, *tables: Routes) -> None:
        self._exact: dict[tuple[str, str], Handler] = {}
        for table in tables:
            twice = self._exact.keys() & table.keys()
            if twice:
                raise ValueError(f"two handlers for {sorted(twice)}")
            self._exact.update(table)
        self._below = [(path, method) for method, path in self._exact if _takes_below(path)]

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Every method and path there is."""
        return sorted(self._exact)

    def find(self, call: Call) -> tuple[str, Handler]:
        """The route's name, for logs and metrics, and its handler.

        Raises:
            NotFound: no such path.
            MethodNotAllowed: the path is there, for other methods.
        """
        method = "GET" if call.method == "HEAD" else call.method
        path = call.path
        handler = self._exact.get((method, path))
        if handler is not None:
            return path, handler
        for prefix, known in self._below:
            if known == method and path.startswith(prefix) and len(path) > len(prefix):
                return prefix, self._exact[method, prefix]
        allowed = self._methods(path)
        if not allowed:
            raise NotFound(f"there is no {path[:200]} here")
        raise MethodNotAllowed(call.method, allowed)

    def _methods(self, path: str) -> list[str]:
        return sorted(
            {m for m, p in self._exact if p == path or (_takes_below(p) and path.startswith(p))}
        )


def _takes_below(path: str) -> bool:
    return path.endswith("/") and path != "/"
