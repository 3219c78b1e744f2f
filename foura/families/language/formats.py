"""Formats of text data: from a record with named fields to an `Example`.

    text         a document; documents are packed into blocks of `dataset.block_size` tokens
    completion   prompt and completion; the loss is on the completion alone
    commonsense  records of LLM-Adapters (instruction, output, answer); the instruction ends in "Answer format:" and choices
    verbalizer   labelled sentences (GLUE): a template makes the prompt, and each label has a word

The last two are multiple choice: trained on the gold answer; the model's answer is the choice with the highest likelihood.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from foura.data.records import encodable, text_field
from foura.errors import UserError

MOST_CHOICES = 100  # per question: the model reads each of them


@dataclass(frozen=True)
class Example:
    """A text to learn, after a prompt that is given; with `choices`, the text is choices[gold]."""

    name: str  # what a message calls it
    text: str
    prompt: str = ""
    choices: tuple[str, ...] = ()
    gold: int = 0


def document(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    """The field `cfg.columns.text`."""
    return Example(name, _filled(row, name, "dataset.columns.text", cfg.columns.text))


def completion(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    """The field `cfg.columns.completion`, after `cfg.columns.prompt`."""
    prompt = text_field(row, name, "dataset.columns.prompt", cfg.columns.prompt)
    return Example(name, _filled(row, name, "dataset.columns.completion", cfg.columns.completion), prompt)


def commonsense(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    """The field output, after the field instruction; the other choices stand in place of the answer in the output."""
    instruction = text_field(row, name, "the question", "instruction")
    output, answer = (
        text_field(row, name, "the text to learn", "output"),
        text_field(row, name, "the gold choice", "answer"),
    )
    _, asked, listed = instruction.rpartition("Answer format:")
    names = [choice.strip() for choice in listed.split("/", MOST_CHOICES)]
    if not asked or not all(names):
        raise UserError(f"{name}: the instruction does not end in 'Answer format: choice/choice/…'.")
    if not 2 <= len(set(names)) == len(names) <= MOST_CHOICES:
        raise UserError(f"{name} needs 2 to {MOST_CHOICES} different choices; it lists {', '.join(names)}.")
    if answer not in names or answer not in output:
        raise UserError(
            f"{name}: the answer {answer!r} is not among the choices {', '.join(names)}, or not in its output."
        )
    head, _, tail = output.rpartition(answer)
    choices = tuple(f"{head}{choice}{tail}" for choice in names)
    return Example(name, output, f"{instruction}\n\n", choices, names.index(answer))


def verbalizer(row: dict[str, Any], name: str, cfg: DictConfig) -> Example:
    """The word of the label `cfg.columns.label`, after `cfg.template` with the record's fields in it."""
    if cfg.template is None or not cfg.verbalizer:
        raise UserError(
            "dataset.format=verbalizer needs dataset.template and dataset.verbalizer, such as "
            '"dataset.template=\'{sentence} It was\'" and \'dataset.verbalizer=[" bad"," good"]\': a prompt of the record\'s '
            "fields, and a word for each label."
        )
    prompt = "".join(
        before + (text_field(row, name, "dataset.template", field) if field else "")
        for before, field in _pieces(cfg.template)
    )
    label = row.get(cfg.columns.label)
    words = tuple(encodable(word, "dataset.verbalizer") for word in cfg.verbalizer)
    if len(words) < 2 or not all(words):
        raise UserError("dataset.verbalizer needs a word for each of at least two labels, and none of them empty.")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(words):
        raise UserError(
            f"{name}: dataset.columns.label={cfg.columns.label} is {label!r}, and dataset.verbalizer has words for 0 to "
            f"{len(words) - 1}."
        )
    return Example(name, words[label], prompt, words, label)


FORMATS: dict[str, Callable[[dict[str, Any], str, DictConfig], Example]] = {
    "text": document,
    "completion": completion,
    "commonsense": commonsense,
    "verbalizer": verbalizer,
}


# {format: the columns (keys of dataset.columns) without whose text there is nothing to learn}
NEEDED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "completion": ("completion",),
    "commonsense": (),
    "verbalizer": (),
}


def _filled(row: dict[str, Any], name: str, key: str, column: str | None) -> str:
    text = text_field(row, name, key, column)
    if not text.strip():
        raise UserError(f"{name}: the field {column!r} is empty.")
    return text


def _pieces(template: str) -> list[tuple[str, str | None]]:
    """[(text before a field, the field), …] of a template; fields are inserted as they are, never formatted.

    Raises:
        UserError: braces that do not name a field, or ask for more than its text.
    """
    try:
        parsed = list(string.Formatter().parse(encodable(template, "dataset.template")))
    except ValueError as error:
        raise UserError(
            f"dataset.template={template} cannot be read ({error}); a brace itself is written twice."
        ) from None
    for _, field, spec, conversion in parsed:
        if field is not None and (not field or spec or conversion):
            raise UserError(
                f"dataset.template={template}: braces hold the name of a field and nothing else, as {{sentence}}."
            )
    return [(before, field) for before, field, _, _ in parsed]
