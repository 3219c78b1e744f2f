"""Checks of an adapter's config: types, choices, numbers, and patterns whose matching time is bounded.

A config is untrusted input: it may come from a file that anyone has written.
"""

import re
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from peft import PeftConfig

# fields that hold names of layers to match or to count in; the keys of the second group are patterns too
PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters", "feedforward_modules")
KEYED = (
    "rank_pattern",
    "alpha_pattern",
    "output_splits",
    "n_frequency_pattern",
    "block_size_pattern",
    "lambda_pattern",
)
MOST_REPEATS = 5  # open-ended ones side by side: each multiplies the matching time by the length of a name


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """`value` is one of the choices.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}")


def check_numbers(r: int, rank_pattern: dict[str, int], alpha: float, alpha_pattern: dict[str, float]) -> None:
    """Ranks are positive and alphas finite.

    Raises:
        ValueError: the first one that is not.
    """
    for where, rank in {"r": r, **{f"rank_pattern[{key!r}]": value for key, value in rank_pattern.items()}}.items():
        if rank <= 0:
            raise ValueError(f"{where} must be a positive integer, got {rank}")
    alphas = {"foura_alpha": alpha, **{f"alpha_pattern[{key!r}]": value for key, value in alpha_pattern.items()}}
    for where, strength in alphas.items():
        if not abs(strength) <= sys.float_info.max:  # NaN fails this too
            raise ValueError(f"{where} must be a finite number, got {strength}")


def check_price(price: float, gate: str, is_trained: bool) -> None:
    """A price for open ranks is a finite number from 0, and above 0 only for a gate that is trained.

    Raises:
        ValueError: it is not.
    """
    if not 0.0 <= price <= sys.float_info.max:  # NaN fails this too
        raise ValueError(f"gate_sparsity must be a finite number of at least 0, got {price}")
    if price > 0.0 and not is_trained:
        raise ValueError(
            f"gate_sparsity={price:g} is a price for gates that training can close, and gate={gate!r} has none"
        )


def check_types(config: PeftConfig) -> None:
    """The fields that a config class itself declares have their declared types.

    Raises:
        TypeError: the first one that has another.
    """
    hints = typing.get_type_hints(type(config))
    for spec in fields(config):
        if spec.name in vars(type(config)).get("__annotations__", {}) and not _is(
            getattr(config, spec.name), hints[spec.name]
        ):
            hint = hints[spec.name]
            wanted = "str" if "Literal" in str(hint) else getattr(hint, "__name__", None) or str(hint)
            raise TypeError(f"{spec.name} must be {wanted}, got {getattr(config, spec.name)!r}")


def _is(value: Any, hint: Any) -> bool:
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:  # `check_choice` answers for the value
        return isinstance(value, str)
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
    """No pattern of the config backtracks without bound in the length of a layer's name.

    Raises:
        ValueError: one might, or is not a regular expression.
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
        raise ValueError(f"{name}: {pattern!r} is not a regular expression ({error})") from None
    if _repeats(parsed) > MOST_REPEATS:
        raise ValueError(
            f"{name}: the pattern {pattern!r} nests repetitions, repeats alternatives, or has too many repetitions, so "
            "matching could take for ever; list the names of the layers instead"
        )


def _repeats(parsed: Any, inside: bool = False) -> int:
    """Number of open-ended repetitions of a parsed pattern that can be tried together.

    One inside another, or alternatives inside one, count as more than MOST_REPEATS.
    """
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
