"""Keeps other sites out: what a browser may load and who may frame a page, whether a form was ours,
and under which names a page on this machine answers.

A form carries a random token that the browser's cookie carries too. Another site can send neither:
it cannot read ours, and the cookie is not sent from there. What the browser itself says of where
the form came from is looked at first. No secret is kept, so that it does not matter which of
several processes made the form.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.requests import Request

COOKIE = "jobsync_page"
FIELD = "token"

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": then a form would not say where it comes from.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def form_token(request: Request) -> str:
    """The token for a form that is shown now: the browser's own, or a new one."""
    known = request.cookies.get(COOKIE, "")
    return known if _is_token(known) else secrets.token_urlsafe(32)


def cookie(request: Request, token: str) -> str:
    """The header that gives the browser its token, for the pages under this prefix alone."""
    path = f"{request.scope.get('root_path', '')}/".replace(";", "%3B")
    secure = "; Secure" if request.url.scheme == "https" else ""
    return f"{COOKIE}={token}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def forged(request: Request, form: Mapping[str, str]) -> str | None:
    """Why a form is not taken for ours; None when it is."""
    site = request.headers.get("sec-fetch-site")
    origin, host = request.headers.get("origin"), request.headers.get("host", "")
    if site is not None and site != "same-origin":
        return "the browser says that this form comes from another site"
    if site is None and origin is not None and urlsplit(origin).netloc != host:
        return f"this form comes from {origin:.100}, and the page is at {host:.100}"
    sent, kept = form.get(FIELD, ""), request.cookies.get(COOKIE, "")
    if not _is_token(kept) or not secrets.compare_digest(sent.encode(), kept.encode()):
        return "this form is not of this page, or is too old: go back, load it anew, and try again"
    return None


def _is_token(text: str) -> bool:
    return len(text) == 43 and text.isascii() and text.replace("-", "").replace("_", "").isalnum()
