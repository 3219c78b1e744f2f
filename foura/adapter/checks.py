"""Whether an adapter's config can be what it says: its types, and patterns that would take for ever to match.

A config comes from a file that somebody else may have written.
"""

import re
import types
import typing
from dataclasses import fields
from typing import Any

from peft import PeftConfig

# names of layers to match, or to count in; keys of the last are patterns too
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
KEYED = ("rank_pattern", "alpha_pattern", "output_splits", "n_frequency_pattern")
MOST_REPEATS = 5  # open-ended, side by side: each multiplies the time by the length of a name


def check_types(config: PeftConfig) -> None:
    """The fields that a config class itself declares hold what they are declared to.

    Raises:
        TypeError: one does not.
    """
    hints = typing.get_type_hints(type(config))
    for spec in fields(config):
        if spec.name in vars(type(config)).get("__annotations__", {}) and not _is(
            getattr(config, spec.name), hints[spec.name]
        ):
            wanted = getattr(hints[spec.name], "__name__", None) or str(hints[spec.name])
            raise TypeError(f"{spec.name} must be {wanted}, got {getattr(config, spec.name)!r}")


def _is(value: Any, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind in (types.UnionType, typing.Union):
        return any(_is(value, one) for one in inner)
    if kind in (list, set):
        return isinstance(value, (list, set, tuple)) and all(_is(item, inner[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(_is(k, inner[0]) and _is(v, inner[1]) for k, v in value.items())
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def check_patterns(config: PeftConfig) -> None:
    """No pattern of the config can take a time that grows without bound with the length of a layer's name.

    Raises:
        ValueError: one can, or is no pattern at all.
    """
    for name in PATTERNS:
        value = getattr(config, name, None)
        for pattern in [value] if isinstance(value, str) else value if name == "layers_pattern" and value else []:
            _check_pattern(name, pattern)
    for name in KEYED:
        for pattern in getattr(config, name, None) or {}:
            _check_pattern(name, pattern)


def _check_pattern(name: str, pattern: Any) -> None:
    try:
        parsed = re._parser.parse(pattern)  # type: ignore[attr-defined]
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{name}: {pattern!r} is no pattern ({error})") from None
    if _repeats(parsed) > MOST_REPEATS:
        raise ValueError(
            f"{name}: the pattern {pattern!r} repeats what itself repeats or has choices, or repeats too often, so matching "
            "could take for ever; list the names of the layers instead"
        )


def _repeats(parsed: Any, inside: bool = False) -> int:
    """How many open-ended repetitions of a parsed pattern can be tried together; many where one is inside another."""
    count = 0
    for kind, argument in parsed:
        name = str(kind)
        if name in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            again = most > 1
            count += int(again and most != least) + _repeats(body, inside or again)
            if inside and most != least:
                return MOST_REPEATS + 1
        elif name == "BRANCH":
            if inside:
                return MOST_REPEATS + 1
            count += max(_repeats(branch, inside) for branch in argument[1])
        elif name == "SUBPATTERN":
            count += _repeats(argument[3], inside)
        elif name in ("ASSERT", "ASSERT_NOT"):
            count += _repeats(argument[1], inside)
        elif name == "ATOMIC_GROUP":
            count += _repeats(argument, inside)
        elif name == "GROUPREF_EXISTS":
            count += sum(_repeats(part, inside) for part in argument[1:] if part)
    return count
