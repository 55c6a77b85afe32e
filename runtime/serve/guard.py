"""Who may ask the server: a token, this machine's own names, and no page of another site."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import Scope

from mate_edge.runtime.serve.intake import header
from mate_edge.runtime.serve.reply import Refusal

OPEN = frozenset(("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"))
"""What needs no token: what probes ask, and pages that hold no data."""
LOOPBACK = re.compile(r"127(\.\d{1,3}){3}")


class Guard:
    """Refuses who may not ask.

    Args:
        token: what a client must send as `Authorization: Bearer`; None: nothing.
        hosts: names under which clients may ask beside this machine's own; None: under any.
    """

    def __init__(self, token: str | None = None, hosts: Collection[str] | None = None) -> None:
        self._token = None if token is None else token.encode()
        self._hosts = hosts

    def check(self, scope: Scope) -> None:
        """Look at a request before its body is read.

        Raises:
            Refusal: 401 without the token, 403 under a name or from a page that may not.
        """
        self._check_token(scope)
        if self._hosts is not None:
            _check_host(scope, self._hosts)
        if scope["method"] != "GET":
            _check_origin(scope)

    def _check_token(self, scope: Scope) -> None:
        """Refuse who has not the token, in a time that tells nothing about it."""
        if self._token is None or scope["path"] in OPEN:
            return
        scheme, _, given = (header(scope, b"authorization") or "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if not (same and scheme.lower() == "bearer"):
            raise Refusal(
                401,
                "this server wants its token: send the header Authorization: Bearer TOKEN",
                {"www-authenticate": "Bearer"},
            )


def is_loopback(host: str) -> bool:
    """Say whether an address or a host's name is this machine's, for itself alone."""
    return host.lower() in ("localhost", "::1") or LOOPBACK.fullmatch(host) is not None


def _check_origin(scope: Scope) -> None:
    """Refuse a page of another site that a browser on this machine shows.

    Raises:
        Refusal: 403.
    """
    origin = header(scope, b"origin")
    if origin is None:
        return
    try:
        site = urlsplit(origin).netloc
    except ValueError:
        site = None
    if site != (header(scope, b"host") or ""):
        raise Refusal(403, "pages of other sites may not use this server")


def _check_host(scope: Scope, allowed: Collection[str]) -> None:
    """Refuse a name that somebody else gave this machine: DNS rebinding.

    Browsers always say which name they were given; what says none is no browser.

    Raises:
        Refusal: 403.
    """
    host = header(scope, b"host") or ""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name and not is_loopback(name) and name.lower() not in allowed:
        raise Refusal(
            403,
            f"this server is localhost, not {name[:60]!r}: start it with --allow-host NAME",
        )
