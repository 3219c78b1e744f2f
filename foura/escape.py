"""Text made safe for where it goes: credentials are taken out, control characters, formulas and markup are escaped.

Names, messages and files come from other people and programs. There is one function for each medium.
"""

import os
import re
import urllib.parse

HIDDEN = "***"
_END = r"[^\s'\"<>]"  # a URI in running text ends at a blank or a quote
# of a URI: user:password@ up to its last @, or a token that stands alone before the first
_USER = re.compile(rf"(?<=://)(?:[^\s/@'\"<>]*:{_END}*@|[^\s/@'\"<>]+@)")
_SECRET_NAME = r"(?:token|key|secret|passw(?:or)?d|pwd|signature|sig|auth|credential)"
_QUERY = re.compile(rf"([?&;][\w.-]*{_SECRET_NAME}[\w.-]*=)[^&\s'\"<>]+", re.IGNORECASE)
_FIELD = re.compile(
    r"\b((?:password|passwd|pwd|client_secret|access_token|api_key)\s?=\s?)[^\s&'\",;)]+", re.IGNORECASE
)
# words may follow "basic": a credential of 16 characters or more has a digit
_HEADER = re.compile(r"\b(bearer|basic)\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{16,}", re.IGNORECASE)
_TOKEN = re.compile(r"\b(?:(?:hf_|gh[pousr]_|sk-)[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,})")
_VARIABLE = re.compile(r"(?:TOKEN|PASSWORD|PASSWD|SECRET|KEY)$")  # of the environment, which hold a credential
SHORTEST = 6  # characters of a credential that is looked for in any text: shorter ones are words too
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is computed by a spreadsheet


def redact(text: str) -> str:
    """The text without credentials: those in URIs (user:password@, tokens of a query), and those of the environment."""
    for secret in _credentials():
        text = text.replace(secret, HIDDEN)
    return _without_patterns(text)


def names_credential(text: str) -> bool:
    """True if a URI in the text has a credential in it, or the text has the form of a token."""
    return _without_patterns(text) != text


def _without_patterns(text: str) -> str:
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _FIELD.sub(rf"\1{HIDDEN}", _QUERY.sub(rf"\1{HIDDEN}", text))
    return _TOKEN.sub(HIDDEN, _HEADER.sub(rf"\1 {HIDDEN}", text))


def _credentials() -> list[str]:
    """The credentials in this process's environment, the longest first, each as it stands and unquoted."""
    found: set[str] = set()
    for name, value in os.environ.items():
        if _VARIABLE.search(name.upper()):
            found.add(value)
        for user in re.findall(r"://([^/\s]*:[^\s]*)@", value):
            password = user.partition(":")[2]
            found |= {password, urllib.parse.unquote(password)}
    return sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)


def printable(text: str) -> str:
    """The text for a terminal or a page: characters that could move its cursor, hide or reverse text are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(value: object) -> object:
    """A value for a CSV cell: text that a spreadsheet would compute gets an apostrophe before it, as spreadsheets write it."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a number


def in_figure(text: str) -> str:
    """Text for matplotlib, which leaves out labels that begin with "_". (`foura.figures` turns its mathematics off.)"""
    shown = printable(text)
    return f" {shown}" if shown.startswith("_") else shown
