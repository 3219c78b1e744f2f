"""The adapter_config.json of a run: untrusted, and checked before PEFT gets it, whose classes take what is in the file.

Every field is one that the method's class has, every number is one that the weights beside it can have, and every loop that
PEFT makes of one ends soon.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from peft import PeftConfig

from foura.errors import UserError

# PEFT imports a module, builds the model's layers anew, or reads another file by these; no run writes one of them
UNWRITTEN: tuple[str, ...] = ("megatron_config", "task_type", "layer_replication", "adapters")
UNWRITTEN += ("prompt_tuning_init_state_dict_path", "tokenizer_name_or_path", "tokenizer_kwargs")
# whole numbers, or {layer: number}, that tensors are made from
SIZES: tuple[str, ...] = ("r", "init_r", "target_r", "rank_pattern", "n_frequency", "n_frequency_pattern")
SIZES += ("block_size", "block_size_pattern", "oft_block_size", "num_cayley_neumann_terms", "mini_r", "hybrid_r")
SIZES += ("gralora_k", "num_subspaces", "subspace_rank", "num_B", "stride_A", "depth", "u", "num_vectors")
SIZES += ("vector_length", "topk", "theta_d_length", "group_size", "psoft_svd_lowrank_niter", "boft_block_size")
SIZES += ("boft_block_num", "boft_n_butterfly_factor", "effective_rank")
RANKS = ("r", "init_r", "target_r", "rank_pattern")
MOST_SIZE, MOST_RANK = 4096, 1024  # beside the sizes of the weights themselves
MOST_LOOPS = 128  # of an iteration, a series or a sampling
MOST_NESTED = 1024  # numbers within a config in the config
LARGEST = 1e9  # of a factor, such as alpha
LONGEST = 10_000  # characters of a text
DEEPEST = 8
_LOOP = re.compile(r"iter|terms|samples|warmup|steps")
_FREE = re.compile(
    r"seed|prng|total_step|tinit|tfinal|deltaT|interval"
)  # sizes nothing: a seed, or the number of a step
_FACTOR = re.compile(r"alpha|lambda|scal|weight|beta|bound|reg|temperature|exponent")
_START = re.compile(r"[a-z_]*(?:_(\d{1,9}))?")  # the name of a start, perhaps with a number of iterations


def check_fields(path: Any, described: Mapping[str, Any], kind: type[PeftConfig], state: Mapping[str, Any]) -> None:
    """Check the fields of an adapter's config.

    Args:
        path: of the file, for messages. described: its content. kind: PEFT's class for it. state: the adapter's tensors.

    Raises:
        UserError: a field that no run writes, or a value that these weights cannot have.
    """
    known = {spec.name for spec in dataclasses.fields(kind)} | {"peft_type", "auto_mapping", "peft_version"}
    for field, value in described.items():
        if field in UNWRITTEN and value is not None:
            raise UserError(f"{path} sets {field}, which no run writes.")
        if field not in known and value:
            raise UserError(
                f"{path} sets {field[:60]!r}, which is not a field of {kind.__name__} here; another PEFT wrote it."
            )
    shapes = [tuple(tensor.shape) for tensor in state.values()]
    sizes = max([MOST_SIZE, *(size for shape in shapes for size in shape)])
    ranks = max([MOST_RANK, *(sorted(shape)[-2] if len(shape) > 1 else max(shape, default=0) for shape in shapes)])
    for field, value in described.items():
        if field in SIZES:
            _check_size(path, field, value, ranks if field in RANKS else sizes)
        if field.startswith("init_") and isinstance(value, str):
            _check_start(path, field, value)
        for name, number in _leaves(path, field, value):
            _check_value(path, field, name, number, sizes)


def _check_size(path: Any, field: str, value: Any, largest: int) -> None:
    for size in value.values() if isinstance(value, dict) else [] if value is None else [value]:
        number = len(size) if isinstance(size, list) else size  # AdaLoRA's pattern has a truth value per rank
        if not isinstance(number, int) or not 0 <= number <= largest:
            raise UserError(f"{path}: {field}={_shown(value)} is not a size that its weights have.")


def _check_start(path: Any, field: str, value: str) -> None:
    found = _START.fullmatch(value)
    if found is None or int(found.group(1) or 0) > MOST_LOOPS:
        raise UserError(f"{path}: {field}={_shown(value)} is not a start that PEFT has, or takes too many iterations.")


def _check_value(path: Any, field: str, name: str, value: Any, sizes: int) -> None:
    """Check one value; `name` is that of its own key where it lies in a config within the config."""
    nested = name != field and not field.endswith("_pattern")
    if isinstance(value, str):
        if len(value) > LONGEST or (nested and "/" in value):
            raise UserError(f"{path}: {field} has the text {_shown(value)}, which no run writes.")
        return
    if isinstance(value, float) or _FACTOR.search(name):
        wrong = not abs(value) <= LARGEST  # NaN is not
    elif _FREE.search(name):
        wrong = not -1 <= value < 2**63
    elif _LOOP.search(name):
        wrong = not -1 <= value <= (MOST_LOOPS if "warmup" not in name else sizes)
    else:
        wrong = not -1 <= value <= (MOST_NESTED if nested else sizes)
    if wrong:
        raise UserError(f"{path}: {field} has {name}={_shown(value)}, which no adapter with these weights has.")


def _leaves(path: Any, field: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name of the key, text or number) of every value of a field, at any depth."""
    waiting: list[tuple[str, Any, int]] = [(field, value, 0)]
    while waiting:
        name, inner, depth = waiting.pop()
        if depth > DEEPEST:
            raise UserError(f"{path}: {field} is nested deeper than any run writes it.")
        if isinstance(inner, dict):
            pattern = field.endswith("_pattern")
            waiting += [(field if pattern else str(key), item, depth + 1) for key, item in inner.items()]
        elif isinstance(inner, list):
            waiting += [(name, item, depth + 1) for item in inner]
        elif isinstance(inner, str | int | float) and not isinstance(inner, bool):
            yield name, inner


def _shown(value: Any) -> str:
    """A value in a message, at most 80 characters of it."""
    text = "a number of many digits" if isinstance(value, int) and abs(value) > 10**100 else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
