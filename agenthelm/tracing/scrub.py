"""Makes free text harmless: secrets of well-known shapes taken out, control characters shown as what they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["MASK", "plain", "scrub", "veiled"]

MASK: Final = "***"
"""What stands in the place of a secret."""

_SECRETS: Final = re.compile(
    r"""
      (?P<url>\b[a-zA-Z][a-zA-Z0-9+.\-]{0,30}://)[^\s/?\#'"<>]{0,512}@                        # user:password@ of a URL
    | (?P<login>\b[A-Za-z0-9._~+%\-]{1,64}:)[^\s/?\#@'"<>]{1,256}@(?=[A-Za-z0-9.\-\[\]:]{1,256}:\d)   # user:password@host:port
    | (?P<scheme>\b(?:bearer|basic|token)\s+)[A-Za-z0-9._~+/\-]{8,}=*              # Authorization: Bearer ...
    | (?P<name>(?:password|passwd|passphrase|pwd|secret|api[_\-]?key|access[_\-]?key|private[_\-]?key|secret[_\-]?key
          |client[_\-]?secret|auth[_\-]?token|access[_\-]?token|refresh[_\-]?token|id[_\-]?token|session[_\-]?token
          |token|authorization|credentials?|signature|sig)
        \\{0,7}['"]?\s*(?:=|:\s?)\s*(?:b(?=['"]))?)(?P<quote>\\{0,7}['"])?(?!\*\*\*)     # backslashes: JSON within JSON
        (?(quote)(?:(?!(?P=quote))(?:\\+['"]?|[^\\]))+                             # up to that very quote
          |(?!\\*['"])(?:(?:bearer|basic|token)\s+)?[^\s'"&,;)}\]<>]{3,})           # password=..., "api_key": "..."
    | \bsk-[A-Za-z0-9_\-]{8,}                                                       # OpenAI, Anthropic
    | \b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,})                 # GitHub
    | \b(?:AKIA|ASIA)[A-Z0-9]{16}\b                                                 # AWS
    | \bAIza[A-Za-z0-9_\-]{30,}                                                     # Google
    | \bxox[abprse]-[A-Za-z0-9\-]{8,}                                               # Slack
    | \b[rsp]k_(?:live|test)_[A-Za-z0-9]{8,}                                        # Stripe
    | \bhf_[A-Za-z0-9]{20,}                                                         # Hugging Face
    | \beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*                  # JSON Web Token
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----(?:.|\n)*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    """,
    re.VERBOSE | re.IGNORECASE,
)

_HINTS: Final = (
    "://", "@", "sk-", "bearer", "basic", "token", "pass", "pwd", "secret", "key", "auth", "cred", "sig", "ghp_", "gho_", "ghu_",
    "ghs_", "ghr_", "github_pat", "akia", "asia", "aiza", "xox", "k_live", "k_test", "hf_", "eyj",
)  # fmt: skip
"""What every secret that is known here contains. Plain searches are several times quicker than the expression."""
_WEB: Final = frozenset({"http://", "https://"})
"""Where clients take a backslash for the end of the host: what stands before it is where the request goes, and no password."""
_BLANK: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""What Python takes for printable, and what takes no room or looks like a space on every screen."""
_SHORTEST: Final = 7
"""Nothing shorter holds a name and a value."""


def _replacement(match: re.Match[str]) -> str:
    if match["url"]:
        if "\\" in match[0] and match["url"].lower() in _WEB:
            return match["url"] + scrub(match[0][len(match["url"]) :])
        return f"{match['url']}{MASK}@"
    if match["login"]:
        return f"{match['login']}{MASK}@"
    if match["scheme"]:
        return f"{match['scheme']}{MASK}"
    if match["name"]:
        return f"{match['name']}{match['quote'] or ''}{MASK}"
    return MASK


def scrub(text: str) -> str:
    """Replace what looks like a secret in free text by ``***``.

    Knows credentials in URLs and before ``host:port``, ``Authorization`` headers, ``name=value`` and ``"name": "value"``
    with a secret-looking name (of JSON within JSON, too), private keys, JSON Web Tokens, and the key shapes of well-known
    providers. A last resort for text nobody structured: values that are known to be secret are masked by name or by type
    before.
    """
    if len(text) < _SHORTEST:
        return text
    lowered = text.lower()
    for hint in _HINTS:
        if hint in lowered:
            return _SECRETS.sub(_replacement, text)
    return text


def veiled(text: str, secrets: Sequence[str]) -> str:
    """Text with ``***`` in the place of each of these secrets; of two that overlap, the one that is named first."""
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def plain(text: str) -> str:
    """Text that can't move a terminal's cursor, change its colours, reverse its direction, or hide a part; one line."""
    if text.isprintable() and (text.isascii() or not _BLANK.search(text)):
        return text
    return "".join(char if _is_seen(char) else char.encode("unicode_escape").decode() for char in text)


def _is_seen(char: str) -> bool:
    return char.isprintable() and not _BLANK.match(char)
