"""Texts as tokens: special tokens once where a text begins and ends, and the bytes of text that each token stands for."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

PROBE = "a"  # any text: what a tokenizer adds around it


class TextEncoder:
    """A tokenizer that adds each special token once, whatever the tokenizer itself adds (some add none, some add two).

    Attributes:
        begin: ids of the tokens with which a text begins; empty for a tokenizer that adds none.
        end: ids of the tokens with which a text ends: the tokenizer's own, else its end token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        before, after = added(tokenizer)
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.begin, self.end = once(before), once(after) or ([] if eos is None else [eos])
        self.opening, self.closing = {bos, *self.begin} - {None}, {eos, *self.end} - {None}
        # an unknown token is "special" too, but it stands for text
        self.special = set(tokenizer.all_special_ids) - {getattr(tokenizer, "unk_token_id", None)}

    def plain(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, bytes of the text that each of them stands for), without special tokens but those in the text itself."""
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        options = {"return_offsets_mapping": True} if fast else {}
        found = self.tokenizer(text, add_special_tokens=False, **options)
        ids = list(found["input_ids"])
        return ids, self._bytes(text, ids, found["offset_mapping"] if fast else None)

    def document(self, text: str) -> tuple[list[int], list[int]]:
        """(ids, bytes) of a text from its beginning to its end."""
        ids, sizes = self.plain(text)
        front, ids, sizes = self._front(ids, sizes)
        while ids and ids[-1] in self.closing:
            ids, sizes = ids[:-1], sizes[:-1]
        return [*front, *ids, *self.end], [*[0] * len(front), *sizes, *[0] * len(self.end)]

    def prompt(self, text: str) -> tuple[list[int], list[int]]:
        """(the tokens with which it begins, those of its text)."""
        ids, sizes = self.plain(text) if text else ([], [])
        front, ids, _ = self._front(ids, sizes)
        if not front and not ids:  # the model needs a token to predict the next one from
            bos = self.tokenizer.bos_token_id
            front = [bos if bos is not None else self.tokenizer.eos_token_id]
        return front, ids

    def answer(self, text: str, ended: bool) -> tuple[list[int], list[int]]:
        """(ids, bytes) of a text that follows a prompt, with the tokens that end it if it is `ended`."""
        ids, sizes = self.plain(text)
        while ids and ids[0] in self.opening and ids[0] in self.special:
            ids, sizes = ids[1:], sizes[1:]
        if not ended:
            return ids, sizes
        while ids and ids[-1] in self.closing:
            ids, sizes = ids[:-1], sizes[:-1]
        return [*ids, *self.end], [*sizes, *[0] * len(self.end)]

    def _front(self, ids: list[int], sizes: list[int]) -> tuple[list[int], list[int], list[int]]:
        """(the tokens with which a text begins, the rest of its ids, their bytes): such a token in the text is not added."""
        written: list[int] = []
        while ids and ids[0] in self.opening:
            written, ids, sizes = [*written, ids[0]], ids[1:], sizes[1:]
        return self.begin or once(written), ids, sizes

    def _bytes(self, text: str, ids: list[int], offsets: Sequence[tuple[int, int]] | None) -> list[int]:
        pieces: list[str] = self.tokenizer.convert_ids_to_tokens(ids)
        total = len(text.encode())
        if sum(map(len, pieces)) == total:  # a tokenizer of bytes: each character of a piece is a byte
            sizes = [len(piece) for piece in pieces]
        elif offsets is not None:
            sizes = _of_spans(text, offsets)
        else:
            sizes = [1 if re.fullmatch(r"<0x..>", piece) else len(piece.replace("▁", " ").encode()) for piece in pieces]
            if (
                sizes and sum(sizes) == total + 1 and pieces[0].startswith("▁")
            ):  # a space that the tokenizer put in front
                sizes[0] -= 1
        return [0 if token in self.special else size for token, size in zip(ids, sizes, strict=True)]


def once(ids: Sequence[int]) -> list[int]:
    """The ids, of equal ones in a row the first."""
    return [token for token, _ in groupby(ids)]


def ends_once(ids: Sequence[int], special: set[int]) -> slice:
    """The ids to keep: of equal special ones in a row at either end one; those in the middle stay, as RoBERTa's between two
    texts.
    """
    start, stop = 0, len(ids)
    while stop - start > 1 and ids[start] == ids[start + 1] and ids[start] in special:
        start += 1
    while stop - start > 1 and ids[stop - 1] == ids[stop - 2] and ids[stop - 1] in special:
        stop -= 1
    return slice(start, stop)


def added(tokenizer: Any) -> tuple[list[int], list[int]]:
    """(ids before, ids after) that a tokenizer adds to a text."""
    whole, plain = list(tokenizer(PROBE)["input_ids"]), list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if plain and whole[start : start + len(plain)] == plain:
            return whole[:start], whole[start + len(plain) :]
    return [], []


def _of_spans(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Bytes of each token, from the spans of characters: up to the token's end, from the end of the one before it.

    Tokens that share a character (the bytes of one) share its bytes. What follows the last token belongs to it.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    place = np.concatenate([[0], np.cumsum(widths)])
    sizes: list[int] = []
    done = 0
    for (_, end), group in groupby(offsets):
        reached = max(done, int(place[end]))
        share, rest = divmod(reached - done, count := len(list(group)))
        sizes += [share + (number < rest) for number in range(count)]
        done = reached
    if sizes:
        sizes[-1] += int(place[-1]) - done
    return sizes
