"""Who may ask: by the host that a client believes to speak to, the page that it comes from, and its key."""

import hmac
import re
from collections.abc import Mapping
from hashlib import sha256

from ..errors import RequestError
from .settings import Settings, is_loopback

Headers = Mapping[str, str]
"""By their names in lower case."""

_PORT = re.compile(r":\d*\Z")


class Access:
    """What is asked of every request before it is read. RequestError refuses it."""

    def __init__(self, settings: Settings) -> None:
        self._checks_host = settings.is_local
        self._origins = frozenset(settings.cors_origins)
        self._digests = [_digest(key) for key in settings.keys]

    def check_host(self, headers: Headers) -> None:
        """Refuse a name that is not this machine's own, where no other machine could ask.

        A page may give its own name the address 127.0.0.1 once it is loaded (DNS rebinding): to the browser, what
        answers there is then the page's. The name stays in the request.
        """
        host = _PORT.sub("", headers.get("host", ""))
        if self._checks_host and not is_loopback(host.lower()):
            raise RequestError(403, "the Host header is not localhost or 127.0.0.1", code="host_not_allowed")

    def check_origin(self, headers: Headers) -> None:
        """Refuse a browser's request for a page that is neither from here nor of an allowed origin."""
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2] == headers.get("host") or self.allows(origin):
            return
        raise RequestError(403, "pages of this origin may not ask: see --cors-origin", code="origin_not_allowed")

    def check_site(self, headers: Headers, method: str) -> None:
        """Refuse what another page has a browser ask without naming its origin, as for its images, scripts and frames.

        Links may lead here: a window of its own shows a page nothing. Browsers tell of it where they trust the way:
        on this machine, and by TLS.
        """
        if "origin" in headers or headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
            return
        is_link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if not (is_link and method == "GET"):
            raise RequestError(403, "pages of other sites may not ask: see --cors-origin", code="origin_not_allowed")

    def allows(self, origin: str) -> bool:
        """Whether --cors-origin names it."""
        return origin in self._origins or "*" in self._origins

    def cors_headers(self, headers: Headers) -> dict[str, str]:
        """What a browser needs to hand an answer to a page of another origin; nothing for any other client."""
        if not self._origins:
            return {}
        found = {"vary": "Origin"}
        if (origin := headers.get("origin")) is not None and self.allows(origin):
            found |= {"access-control-allow-origin": origin, "access-control-expose-headers": "x-request-id"}
            if "access-control-request-method" in headers:
                asked = headers.get("access-control-request-headers", "")
                found |= {
                    "access-control-allow-methods": "GET, POST",
                    "access-control-allow-headers": asked,
                    "access-control-max-age": "600",
                }
        return found

    def owner(self, headers: Headers) -> str:
        """A digest of the key that a request shows, "" where none is asked for; 401 for a missing or wrong one."""
        if not self._digests:
            return ""
        bearer = headers.get("authorization", "")
        shown = [headers.get("x-api-key", "")]
        if bearer[:7].lower() == "bearer ":
            shown.append(bearer[7:].strip())
        # no comparison ends early: nothing is learned from the time it takes
        matches = [hmac.compare_digest(digest, _digest(key)) for key in shown for digest in self._digests]
        if not any(matches):
            raise RequestError(401, "missing or wrong API key", code="invalid_api_key")
        return self._digests[matches.index(True) % len(self._digests)].hex()


def _digest(key: str) -> bytes:
    return sha256(key.encode("latin-1", "replace")).digest()
