"""Special tokens once where a text begins and ends, for any tokenizer; and the bytes that tokens stand for, by hand."""

import pytest

from foura.data.text_tokens import TextEncoder, ends_once
from foura.families.language.formats import Example
from foura.families.language.tokens import IGNORED, blocks, question, sequence
from tests.helpers.tokenizers import TEMPLATES, byte_level, pieces, words

BEGINS = {"neither": "", "bos": "<bos>", "eos": "", "both": "<bos>", "doubled bos": "<bos>", "doubled eos": ""}
BEGINS |= {"doubled": "<bos>"}


def decoded(tokenizer, ids) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("written", ["Hi", "<bos>Hi", "Hi<eos>", "<bos><bos>Hi<eos><eos>"])
def test_documents_begin_and_end_once(template, written) -> None:
    tokenizer = byte_level(template)
    ids, sizes = TextEncoder(tokenizer).document(written)
    begins = BEGINS[template] or ("<bos>" if "<bos>" in written else "")
    assert decoded(tokenizer, ids) == f"{begins}Hi<eos>"
    assert sum(sizes) == 2


@pytest.mark.parametrize("template", TEMPLATES)
def test_packed_documents_have_one_end_each(template) -> None:
    tokenizer = byte_level(template)
    examples = [Example(str(number), "ab") for number in range(40)]
    found = blocks("train", examples, 20, TextEncoder(tokenizer))
    whole = "".join(decoded(tokenizer, block.ids) for block in found)
    assert whole.startswith(f"{BEGINS[template]}ab<eos>{BEGINS[template]}ab<eos>")
    assert "<eos><eos>" not in whole and "<bos><bos>" not in whole
    letters = set(tokenizer.convert_tokens_to_ids(["a", "b"]))
    for block in found:
        assert block.bytes == sum(int(token) in letters for token in block.labels)


@pytest.mark.parametrize("template", ["neither", "<eos> $A", "<eos> $A <eos>"])
def test_a_token_that_begins_and_ends_stands_once_between_two_texts(template) -> None:
    """As OPT's and GPT-2's, whose beginning and end are one token."""
    tokenizer = byte_level(template, bos_token="<eos>")
    ids = blocks("train", [Example("", "ab")] * 9, 24, TextEncoder(tokenizer))[0].ids
    assert decoded(tokenizer, ids).removeprefix("<eos>").startswith("ab<eos>ab<eos>ab<eos>")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_completion_follows_its_prompt_without_an_end_between(template) -> None:
    tokenizer = byte_level(template)
    texts = TextEncoder(tokenizer)
    item = sequence(Example("", " Paris", "The capital is"), texts, 64)
    assert decoded(tokenizer, item.ids) == f"{BEGINS[template]}The capital is Paris<eos>"
    assert decoded(tokenizer, item.ids[item.labels != IGNORED]) == " Paris<eos>"
    assert item.bytes == 6
    assert decoded(tokenizer, sequence(Example("", "Hi<eos>"), texts, 64).ids) == "<bos>Hi<eos>"  # without a prompt
    choices = question(Example("", "", "<bos>Is it?", (" yes", " no"), 0), texts, 64).candidates
    begins = BEGINS[template] or "<bos>"
    assert [decoded(tokenizer, one.ids) for one in choices] == [f"{begins}Is it? yes", f"{begins}Is it? no"]
    assert [one.bytes for one in choices] == [4, 3]


def test_bytes_are_of_the_tokens_that_are_scored() -> None:
    texts = TextEncoder(byte_level("both"))
    cut = sequence(Example("", "x" * 300, "p" * 10), texts, 128)
    assert len(cut.ids) == 128 and cut.bytes == int((cut.labels != IGNORED).sum()) == 127
    cut = sequence(Example("", "é" * 3, "p" * 10), texts, 5)  # four bytes of six
    assert cut.bytes == 4


def test_the_beginning_of_a_prompt_that_is_too_long_is_still_a_beginning() -> None:
    tokenizer = byte_level("bos")
    ids = sequence(Example("", " yes", "x" * 50 + "END"), TextEncoder(tokenizer), 12).ids
    assert decoded(tokenizer, ids) == "<bos>xxxEND yes<eos>"


@pytest.mark.parametrize(
    ("made", "text", "wanted"),
    [
        (byte_level, "aé€😀", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (byte_level, "a<eos>b", [1, 0, 1]),
        (words, "The capital  of France.", [3, 8, 4, 7, 1]),
        (words, "  the ZEBRA é \n", [5, 6, 5]),  # unknown words are text, and so are spaces at the ends
        (words, "the<eos>the", [3, 0, 3]),
        (pieces, "Th is", [1, 1, 3]),  # "▁T" stands for "T": no space is in the text
        (pieces, "a€", [1, 1, 1, 1]),
    ],
)
def test_bytes_of_each_token(made, text, wanted) -> None:
    texts = TextEncoder(made())
    ids, sizes = texts.plain(text)
    assert sum(sizes) == len(text.replace("<eos>", "").encode())
    nonzero = [size for size in sizes if size] if made is pieces else sizes
    assert nonzero == wanted, texts.tokenizer.convert_ids_to_tokens(ids)


def test_a_tokenizer_without_spans(monkeypatch) -> None:
    """As those in Python: the pieces tell."""
    tokenizer = pieces()
    monkeypatch.setattr(type(tokenizer), "is_fast", property(lambda self: False))
    texts = TextEncoder(tokenizer)
    assert sum(texts.plain("Th is €")[1]) == len("Th is €".encode())


def test_ends_of_encoded_pairs() -> None:
    def kept(ids: list[int], special: set[int]) -> list[int]:
        return ids[ends_once(ids, special)]

    assert kept([1, 1, 5, 5, 2, 2, 6, 2, 2], {1, 2}) == [1, 5, 5, 2, 2, 6, 2]
    assert kept([5, 5], {1}) == [5, 5] and kept([1, 1, 1], {1}) == [1] and kept([], {1}) == []
