"""Texts of more tokens than a model or `dataset.block_size` takes: counted and cut, left out, or refused."""

from collections.abc import Mapping, Sequence

from foura.distributed import print_on_main
from foura.errors import UserError


def fitting_items(lost: Mapping[str, Sequence[int]], wanted: str, limit: str, where: str) -> dict[str, list[int]]:
    """{split: indices of the items to keep}; how many items are too long, and by how much, is said.

    Args:
        lost: {split: the number of tokens of each item that do not fit}.
        wanted: `dataset.too_long`: "cut" keeps them without those tokens, "drop" leaves the items out, "refuse" ends the run.
        limit: what they are too long for, as in "dataset.block_size=128 tokens".
        where: what is cut off, as in "their end".

    Raises:
        UserError: there are some, and they are refused; or nothing is left.
    """
    long = {split: sum(count > 0 for count in counts) for split, counts in lost.items()}
    if not any(long.values()):
        return {split: list(range(len(counts))) for split, counts in lost.items()}
    every = [count for counts in lost.values() for count in counts]
    items = ", ".join(f"{long[split]} of {len(counts)} {split}" for split, counts in lost.items() if long[split])
    said = f"{items} items are longer than {limit}"
    if wanted == "refuse":
        raise UserError(
            f"{said}, the longest by {max(every)}: set dataset.too_long=cut or drop, or make room for them."
        )
    if wanted == "cut":
        print_on_main(
            f"note: {said}: {sum(every)} tokens are cut off {where} (up to {max(every)} of one item); "
            "dataset.too_long=drop leaves these items out."
        )
        return {split: list(range(len(counts))) for split, counts in lost.items()}
    kept = {split: [n for n, count in enumerate(counts) if not count] for split, counts in lost.items()}
    empty = [split for split, indices in kept.items() if not indices]
    if empty:
        raise UserError(f"{said}, and without them the {empty[0]} split is empty (dataset.too_long=drop).")
    print_on_main(f"note: {said}, and left out.")
    return kept
