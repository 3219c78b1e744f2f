"""Formats of records: read as examples, or refused in one sentence."""

import pytest

from foura.errors import UserError
from foura.families.language.sources import open_text
from tests.helpers.texts import config, prepared

COMMONSENSE = {
    "instruction": "Which is hot?\n\nAnswer1: ice Answer2: fire\n\nAnswer format: answer1/answer2",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}


def test_commonsense_records_become_choices(lines) -> None:
    source = open_text(config(path=lines(*[COMMONSENSE] * 5)), "commonsense")
    example = source.splits["train"][0]
    assert example.choices == ("the correct answer is answer1", "the correct answer is answer2")
    assert example.gold == 1 and example.text == example.choices[1]


def test_a_template_and_words_make_choices_of_labelled_sentences(lines) -> None:
    rows = [{"sentence": "a fine film", "label": 1}, {"sentence": "a bore", "label": 0}]
    fields = {"template": "{sentence} It was", "verbalizer": [" bad", " good"]}
    source = open_text(config(path=lines(*rows), **fields), "verbalizer")
    first, second = source.splits["train"]
    assert (first.prompt, first.text, second.text) == ("a fine film It was", " good", " bad")


def test_bad_text_ends_in_a_sentence(llama, lines, tmp_path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "short.txt").write_text("few words")
    (tmp_path / "none").mkdir()
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": ')

    def refused(words, **fields):
        form = fields.pop("form", "text")
        with pytest.raises(UserError, match=words):
            prepared(open_text(config(**fields), form), llama)

    refused("is empty", source="text", path=str(tmp_path / "empty.txt"))
    refused("not UTF-8 text .byte 3", source="text", path=str(tmp_path / "latin.txt"))
    refused("less than one block of 128", source="text", path=str(tmp_path / "short.txt"))
    refused("has no text files", source="text", path=str(tmp_path / "none"))
    refused("nothing at that place", source="text", path=str(tmp_path / "nowhere"))
    refused("broken.jsonl, line 2 is not JSON", path=str(tmp_path / "broken.jsonl"))
    refused("no field 'text'.*it has: body, label", path=lines({"body": "x", "label": 1}))
    refused("no field 'completion'", path=lines({"prompt": "x"}), form="completion")
    refused("holds int, not text", path=lines({"text": 3}))
    refused("Answer format", path=lines({**COMMONSENSE, "instruction": "?"}), form="commonsense")
    refused("not among the choices", path=lines({**COMMONSENSE, "answer": "answer9"}), form="commonsense")
    refused("needs dataset.template", path=lines({"sentence": "x", "label": 0}), form="verbalizer")
    words = {"template": "{sentence}", "verbalizer": ["a", "b"]}
    refused("is 7, and dataset.verbalizer", path=lines({"sentence": "x", "label": 7}), form="verbalizer", **words)
    with pytest.raises(UserError, match="more than the model's context of 512"):
        prepared(open_text(config(source="stdlib"), "text"), llama, block_size=4096)
