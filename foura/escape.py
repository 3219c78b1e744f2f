"""Text made safe for where it goes: credentials are taken out, control characters, formulas and markup are escaped.

Names, messages and files come from other people and programs. There is one function for each medium.
"""

import base64
import functools
import html
import json
import os
import re
import urllib.parse

HIDDEN = "***"
_END = r"[^\s'\"<>]"  # a URI in running text ends at a blank or a quote
# of a URI: user:password@ up to its last @, or a token that stands alone before the first
_USER = re.compile(rf"(?<=://)(?:[^\s/@'\"<>]*:{_END}*@|[^\s/@'\"<>]+@)")
_SECRET_NAME = r"(?:token|key|secret|passw(?:or)?d|pwd|signature|sig|auth|credential)"
_QUERY = re.compile(rf"([?&;][\w.-]*{_SECRET_NAME}[\w.-]*=)[^&\s'\"<>]+", re.IGNORECASE)
_FIELD_NAME = r"(?:password|passwd|pwd|client_secret|access_token|api_key|accountkey|sharedaccesskey)"
# of a connection string, whose values may be quoted, and which may itself be a percent-encoded part of a URI
_FIELD = re.compile(
    rf"((?:\b|(?<=%3B)|(?<=%26)|(?<=%20))(?:ssl)?{_FIELD_NAME}\s?(?:=|%3D)\s?)"
    r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?:(?!%3B|%26|%20)[^\s&'\",;)])+)",
    re.IGNORECASE,
)
# words may follow "basic": a credential of 16 characters or more has a digit, or follows the name of the header
_HEADER = re.compile(
    r"((?<![\w-])authorization['\"]?\s*[:=]\s*b?['\"]?(?:bearer|basic|token)|\b(?:bearer|basic)(?=\s+[\w.~+/=-]*\d))"
    r"\s+[\w.~+/=-]{16,}",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:(?:hf_|gh[pousr]_|sk-)[A-Za-z0-9]{20,}|sk-(?:ant|proj|svcacct)-[\w-]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|dapi[0-9a-f]{32}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
)
_VARIABLE = re.compile(r"(?:TOKEN|PASSWORD|PASSWD|_PASS|_PWD|PASSPHRASE|SECRET|KEY|_PAT)$")  # that hold a credential
_ADDRESS = re.compile(r"://(?:[^:/@]*):(.*)@", re.DOTALL)  # an address in a variable; its password may hold anything
_PARTS = re.compile(r"[@/?#:&]")  # where a parser may end a password that should have been percent-encoded
SHORTEST = 6  # characters of a credential that is looked for in any text: shorter ones are words too
LONE = 16  # characters from which a text with a digit is a token, not a word or a user's name
# a cell that begins so is computed by a spreadsheet; by some also where it begins with a sign of double width
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def redact(text: str) -> str:
    """The text without credentials: those in URIs (user:password@, tokens of a query), and those of the environment.

    The credentials of the environment are found as they stand, percent-encoded or not, and escaped: SQLAlchemy, urllib3 and
    database drivers each write an address in their own way.
    """
    for secret in _credentials():
        text = _spelled(secret).sub(HIDDEN, text)
    return _without_patterns(text)


def without_user(uri: str) -> str:
    """A URI without its user and password."""
    return _USER.sub("", uri)


def names_credential(text: str) -> bool:
    """True if a URI in the text has a credential in it, or the text has the form of a token, or one of the environment's.

    Passwords of the environment that could be words or names do not count: who has DB_PASSWORD=postgres may name a folder so.
    """
    return _without_patterns(text) != text or any(
        _spelled(secret).search(text) for secret in _credentials() if _is_token(secret)
    )


def _is_token(text: str) -> bool:
    """True for what is a token rather than a word or a name."""
    return len(text) >= LONE and re.search(r"\d", text) is not None


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
        if "://" in value:
            found |= _in_address(value)
        elif name.upper().endswith(("_URI", "_URL")) and "@" in value:  # a slash or the scheme is missing
            found |= set(_PARTS.split(value.rpartition("@")[0].partition(":")[2]))
    found |= {urllib.parse.unquote(secret) for secret in found}
    return sorted((secret for secret in found if len(secret) >= SHORTEST), key=len, reverse=True)


def _in_address(address: str) -> set[str]:
    """The credentials in an address, and in each of several: passwords, tokens in place of a user, and those of the query.

    Of a password that should have been percent-encoded and is not, a parser takes a part for the host or the path, and
    quotes that: each part counts. So does the header that is made of the user and the password.
    """
    found: set[str] = set()
    for one in re.split(r"(?<![\w+.-])(?=[\w+.-]+://)", address):
        for password in _ADDRESS.findall(one):
            found |= {password, *_PARTS.split(password)}
            user = one.partition("://")[2].partition(":")[0]
            plain = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password)}"
            found.add(base64.b64encode(plain.encode()).decode())
        lone = re.search(r"://([^:/@]*)[:@]", one)
        if lone is not None and _is_token(lone[1]):
            found.add(lone[1])
        found |= {
            value for _, value in re.findall(rf"[?&;]([\w.-]*{_SECRET_NAME}[\w.-]*)=([^&#]+)", one, re.IGNORECASE)
        }
    return found


@functools.lru_cache(maxsize=64)
def _spelled(secret: str) -> re.Pattern[str]:
    """Matches a credential as it stands, and with any of its characters percent-encoded (twice too) or escaped."""
    return re.compile("".join(map(_character, secret)))


def _character(one: str) -> str:
    if one.isalnum() and one.isascii():
        return one
    encoded = "".join(f"%(?:25)*(?i:{byte:02x})" for byte in one.encode("utf-8", "surrogatepass"))
    escaped = {re.escape(one.encode("unicode_escape").decode()), re.escape(json.dumps(one)[1:-1])}
    escaped |= {re.escape(html.escape(one)), rf"\\*{re.escape(one)}", *(["\\+"] if one == " " else [])}
    return f"(?:{encoded}|{'|'.join(sorted(escaped, key=len, reverse=True))})"


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
