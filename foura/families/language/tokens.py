"""From examples to token sequences, and from those to batches."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foura.errors import UserError
from foura.families.language.formats import Example

IGNORED = -100  # a label that does not count: prompts and padding


@dataclass(frozen=True)
class Tokens:
    """One sequence: ids (T,), labels (T,) with IGNORED where nothing is learnt, and the number of bytes of the labels' text."""

    ids: Tensor
    labels: Tensor
    bytes: int


@dataclass(frozen=True)
class Question:
    """Multiple choice: one sequence per choice, each with the same prompt."""

    candidates: tuple[Tokens, ...]
    gold: int


def blocks(name: str, examples: list[Example], size: int, tokenizer: Any) -> list[Tokens]:
    """Documents one after another, each closed by the end token, in blocks of `size` tokens; the last piece is left out.

    Args:
        name: of the split, for messages.

    Raises:
        UserError: fewer tokens than one block has.
    """
    ids: list[int] = []
    for example in examples:
        ids += tokenizer(example.text)["input_ids"]
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
    if len(ids) < size:
        raise UserError(
            f"the {name} text has {len(ids)} tokens, less than one block of {size}: lower dataset.block_size, or give more "
            "text."
        )
    rows = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    texts = tokenizer.batch_decode(rows[:, 1:])  # the first token of a block is not predicted
    found = []
    for row, text in zip(rows, texts, strict=True):
        labels = row.clone()
        labels[0] = IGNORED
        found.append(Tokens(row, labels, len(text.encode())))
    return found


def sequence(example: Example, tokenizer: Any, size: int, text: str | None = None) -> Tokens:
    """Prompt and text of an example, at most `size` tokens; a prompt that is too long loses its beginning.

    Args:
        text: takes the place of the example's own.
    """
    text = example.text if text is None else text
    prompt = tokenizer(example.prompt)["input_ids"] if example.prompt else []
    if not prompt:
        prompt = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None or example.choices else [tokenizer.eos_token_id]
    answer = [*answer, *end][: size - 1]
    prompt = prompt[-(size - len(answer)) :]
    ids = torch.tensor([*prompt, *answer])
    labels = ids.clone()
    labels[: len(prompt)] = IGNORED
    return Tokens(ids, labels, len(text.encode()))


def question(example: Example, tokenizer: Any, size: int) -> Question:
    """A sequence of at most `size` tokens for each choice of an example."""
    return Question(tuple(sequence(example, tokenizer, size, choice) for choice in example.choices), example.gold)


def collate(items: list[Any], pad: int) -> dict[str, Tensor]:
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
