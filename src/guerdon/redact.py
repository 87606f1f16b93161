"""Secrets out of texts: an address with a password or a key in it is neither shown nor saved."""

from __future__ import annotations

import re

SECRET = re.compile(r"api_?key|secret|password|passwd|credential|(^|_)token$|authorization", re.IGNORECASE)
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s?#]*@")
_QUERY = re.compile(r"([?&][^=&\s]*(?:key|token|secret|signature|password)[^=&\s]*=)[^&\s'\")]+", re.IGNORECASE)


def without_credentials(text: str) -> str:
    """A text whose addresses name no user, password or key: "https://me:pw@host/v1?key=abc" -> "https://host/v1?key=***"."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1", text))
