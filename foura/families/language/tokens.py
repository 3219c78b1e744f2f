"""From examples to token sequences, and from those to batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foura.data.text_tokens import TextEncoder
from foura.errors import UserError
from foura.families.language.formats import Example

IGNORED = -100  # a label that does not count: prompts and padding


@dataclass(frozen=True)
class Tokens:
    """One sequence: ids (T,), labels (T,) with IGNORED where nothing is learnt, and the bytes of text that these stand for.

    Special tokens stand for none.
    """

    ids: Tensor
    labels: Tensor
    bytes: int


@dataclass(frozen=True)
class Question:
    """Multiple choice: one sequence per choice, each with the same prompt."""

    candidates: tuple[Tokens, ...]
    gold: int


def blocks(name: str, examples: list[Example], size: int, texts: TextEncoder) -> list[Tokens]:
    """Documents one after another, each from its beginning to its end, in blocks of `size` tokens; the last piece is left out.

    A token that ends a text and begins the next one, as in some tokenizers, is there once.

    Args:
        name: of the split, for messages.

    Raises:
        UserError: fewer tokens than one block has.
    """
    ids: list[int] = []
    sizes: list[int] = []
    for example in examples:
        more, weights = texts.document(example.text)
        both = bool(ids) and ids[-1] == more[0] and more[0] in texts.closing
        ids += more[both:]
        sizes += weights[both:]
    if len(ids) < size:
        raise UserError(
            f"the {name} text has {len(ids)} tokens, less than one block of {size}: lower dataset.block_size, or give more "
            "text."
        )
    found = []
    for start in range(0, len(ids) - size + 1, size):
        row = torch.tensor(ids[start : start + size])
        labels = row.clone()
        labels[0] = IGNORED  # the first token of a block is not predicted
        found.append(Tokens(row, labels, sum(sizes[start + 1 : start + size])))
    return found


def sequence(example: Example, texts: TextEncoder, size: int, text: str | None = None) -> Tokens:
    """Prompt and text of an example, at most `size` tokens; a prompt that is too long loses its beginning.

    Args:
        text: takes the place of the example's own.
    """
    front, prompt, answer, weights = _parts(example, texts, text)
    answer = answer[: size - 1]
    front = front[: size - len(answer)]
    room = size - len(answer) - len(front)
    prompt = [*front, *prompt[max(0, len(prompt) - room) :]]
    ids = torch.tensor([*prompt, *answer])
    labels = ids.clone()
    labels[: len(prompt)] = IGNORED
    return Tokens(ids, labels, sum(weights[: len(answer)]))


def question(example: Example, texts: TextEncoder, size: int) -> Question:
    """A sequence of at most `size` tokens for each choice of an example."""
    return Question(tuple(sequence(example, texts, size, choice) for choice in example.choices), example.gold)


def lost_tokens(example: Example, texts: TextEncoder, size: int) -> int:
    """The number of an example's tokens that `sequence` leaves out; of several choices, the most."""
    lost = 0
    for text in example.choices or (example.text,):
        front, prompt, answer, _ = _parts(example, texts, text)
        lost = max(lost, len(front) + len(prompt) + len(answer) - size)
    return lost


def _parts(example: Example, texts: TextEncoder, text: str | None) -> tuple[list[int], list[int], list[int], list[int]]:
    """(tokens with which it begins, those of the prompt, those of the text, bytes that the latter stand for)."""
    return *texts.prompt(example.prompt), *texts.answer(example.text if text is None else text, not example.choices)


def collate(items: Sequence[Tokens | Question], pad: int) -> dict[str, Tensor]:
    """A batch of `Tokens`: input_ids, attention_mask, labels (S, T), bytes (S,), padded on the right with the token `pad`.

    A `Question` gives a row per choice; such batches also have "question" (S,), the number of the item that a row belongs to,
    and "gold" (S,), true for the right choice.
    """
    rows: list[Tokens] = []
    belongs: list[int] = []
    gold: list[bool] = []
    for number, item in enumerate(items):
        candidates = item.candidates if isinstance(item, Question) else (item,)
        rows += candidates
        belongs += [number] * len(candidates)
        gold += [not isinstance(item, Question) or place == item.gold for place in range(len(candidates))]
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)], labels[number, : len(row.ids)] = row.ids, row.labels
        mask[number, : len(row.ids)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "bytes": torch.tensor([r.bytes for r in rows])}
    if any(isinstance(item, Question) for item in items):
        batch |= {"question": torch.tensor(belongs), "gold": torch.tensor(gold)}
    return batch
