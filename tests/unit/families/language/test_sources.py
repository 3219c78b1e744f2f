"""Texts and records as people have them: blank ones, splits by file names, labels that are hidden, texts that are too long."""

import gzip
import json
import math
import shutil
from types import SimpleNamespace

import pytest
import torch

from foura.errors import UserError
from foura.families.language.data import prepare_text
from foura.families.language.sources import open_text
from foura.families.language.task import Language
from tests.helpers.config import composed
from tests.helpers.texts import config
from tests.helpers.tokenizers import byte_level


def documents(folder, count: int = 4, text: str = "document") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.txt").write_text(f"{text} {index} of {folder.name}")


def sizes(path, **fields) -> dict[str, int]:
    return {
        split: len(part)
        for split, part in open_text(config(source="text", path=str(path), **fields), "text").splits.items()
    }


def test_what_systems_leave_is_no_text(tmp_path) -> None:
    documents(tmp_path / "data")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "__pycache__"):
        shutil.copytree(tmp_path / "data", tmp_path / "data" / name)
    for name in ("._0.txt", "~$0.txt", "0.txt~", "#0.txt#"):
        (tmp_path / "data" / name).write_bytes(b"\x00\xff\xfe")
    assert sizes(tmp_path / "data") == {"train": 4}


def test_empty_files_are_left_out_and_counted(tmp_path, capsys) -> None:
    documents(tmp_path)
    (tmp_path / "__init__.py").touch()
    (tmp_path / "blank.md").write_text(" \n\t\n")
    assert sizes(tmp_path) == {"train": 4}
    assert "2 of 6 items of the train split are empty and left out" in capsys.readouterr().out
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="the train split is empty: all of its 2 items are empty"):
        sizes(tmp_path)


def test_a_file_that_is_not_text_can_be_left_out(tmp_path, capsys) -> None:
    documents(tmp_path)
    (tmp_path / "old.txt").write_bytes("naïve".encode("cp1252"))
    with pytest.raises(UserError, match="is not UTF-8 text"):
        sizes(tmp_path)
    assert sizes(tmp_path, unreadable="drop") == {"train": 4}
    assert "1 of 5 items of the train split are unreadable" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("Training", "Validation", "Testing"), ("ptb.train", "ptb.dev", "ptb.eval")]
)
def test_files_are_splits_by_their_names(names, tmp_path) -> None:
    for name in names:
        (tmp_path / f"{name}.txt").write_text(f"the {name} text")
    (tmp_path / "README.md").write_text("about")
    assert sizes(tmp_path) == {"train": 1, "validation": 1, "test": 1}


def test_splits_cannot_be_named_of_one_file(tmp_path) -> None:
    (tmp_path / "book.txt").write_text("a text")
    assert sizes(tmp_path / "book.txt") == {"train": 1}
    with pytest.raises(UserError, match=r"book\.txt is a file: leave dataset\.splits out"):
        sizes(tmp_path / "book.txt", splits={"train": "book.txt"})


def test_folders_are_splits_by_their_names(tmp_path) -> None:
    for name in ("Train", "dev", "Testing"):
        documents(tmp_path / name)
    assert sizes(tmp_path) == {"train": 4, "validation": 4, "test": 4}
    documents(tmp_path / "notes")
    with pytest.raises(UserError, match=r"named like splits .* and others with data \(notes\)"):
        sizes(tmp_path)
    assert sizes(tmp_path, splits={"train": "notes", "test": "dev"}) == {"train": 4, "test": 4}


def test_files_of_splits_beside_others_are_refused(tmp_path) -> None:
    for name in ("train.py", "test.py", "utils.py"):
        (tmp_path / name).write_text("code")
    with pytest.raises(UserError, match=r"named like splits .* and others \(such as utils\.py\): .*dataset\.splits="):
        sizes(tmp_path)
    assert sizes(tmp_path, splits={"train": "."}) == {"train": 3}
    (tmp_path / "train.py").unlink()
    assert sizes(tmp_path) == {"train": 2}  # a file named test alone is a document


def test_copies_of_documents_are_said_and_can_be_dropped(tmp_path, llama, capsys) -> None:
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        documents(tmp_path / split, count, "one two three " * 20)
    for index in range(3):
        shutil.copy(tmp_path / "train" / f"{index}.txt", tmp_path / "test" / f"again {index}.txt")
    lengths = {}
    for duplicates in ("keep", "drop"):
        cfg = config(source="text", path=str(tmp_path), block_size=16, duplicates=duplicates)
        data = prepare_text(open_text(cfg, "text"), cfg, 0, llama.tokenizer, 256)
        assert "3 of 7 test items are also in the training data" in capsys.readouterr().out
        lengths[duplicates] = [len(part) for part in (data.train, data.validation, data.test)]
    assert lengths["drop"][0] == pytest.approx(lengths["keep"][0] * 9 / 12, abs=1)
    assert lengths["drop"][1:] == lengths["keep"][1:]


@pytest.mark.parametrize(
    ("form", "row"),
    [("text", {"text": " "}), ("text", {"text": None}), ("completion", {"prompt": "a", "completion": ""})],
)
def test_blank_records_are_left_out_and_counted(form, row, lines, capsys) -> None:
    good = [{"text": f"text {i}", "prompt": f"say {i}", "completion": f" {i}"} for i in range(9)]
    found = open_text(config(path=lines(*good, row)), form).splits
    assert len(found["train"]) == 9
    assert "1 of 10 items of the train split are without text and left out" in capsys.readouterr().out


def test_glue_as_it_is(tmp_path, capsys) -> None:
    """Hidden labels of test data, as -1 or as a missing column: the split is left out by name."""
    rows = [{"sentence": f"film {i}", "label": i % 2} for i in range(12)]
    hidden = {"parquet": [{**row, "label": -1} for row in rows], "tsv": [{"sentence": row["sentence"]} for row in rows]}
    import pandas

    for kind, test in hidden.items():
        folder = tmp_path / kind
        folder.mkdir()
        for split, some in (("train", rows), ("validation", rows[:4]), ("test", test)):
            frame = pandas.DataFrame(some)
            path = folder / f"{split}.{kind}"
            frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path, sep="\t", index=False)
        cfg = config(path=str(folder), template="{sentence} It was", verbalizer=[" bad", " good"])
        found = open_text(cfg, "verbalizer").splits
        assert {split: len(part) for split, part in found.items()} == {"train": 12, "validation": 4}
        assert found["train"][1].gold == 1
        assert "the test split has no labels: it is left out" in capsys.readouterr().out


def test_packed_records_by_the_same_key(tmp_path) -> None:
    rows = "\n".join(json.dumps({"text": f"text {i}"}) for i in range(5))
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "test.csv").write_text("text\na\nb\n")
    found = open_text(config(path=str(tmp_path)), "text").splits
    assert {split: len(part) for split, part in found.items()} == {"train": 5, "test": 2}


LONG = [{"prompt": "p" * 10, "completion": "c" * (300 if i < 3 else 20)} for i in range(10)]


@pytest.mark.parametrize(("choice", "total"), [("cut", 10), ("drop", 7)])
def test_examples_that_are_too_long_are_counted(choice, total, lines, capsys) -> None:
    cfg = config(path=lines(*LONG), block_size=64, too_long=choice)
    data = prepare_text(open_text(cfg, "completion"), cfg, 0, byte_level("both"), 512)
    assert sum(data.sizes.values()) == total
    said = capsys.readouterr().out
    assert "items are longer than dataset.block_size=64 tokens" in said
    # bos, 10 of the prompt, 300 of the completion, eos
    assert (f"{3 * (312 - 64)} tokens are cut off" in said) == (choice == "cut")


def test_examples_that_are_too_long_are_refused(lines) -> None:
    cfg = config(path=lines(*LONG), block_size=64, too_long="refuse")
    with pytest.raises(UserError, match=r"the longest by 248: set dataset\.too_long=cut or drop"):
        prepare_text(open_text(cfg, "completion"), cfg, 0, byte_level("both"), 512)


@pytest.mark.parametrize("form", ["text", "completion", "verbalizer"])
def test_bits_per_byte_are_of_the_tokens_that_were_scored(form, lines) -> None:
    """A model that gives every one of V tokens the same probability needs log2(V) bits for each token."""
    rows = [{"text": "ab " * 3, "prompt": "say", "completion": " x" * 150, "label": i % 2} for i in range(40)]
    fields = {"template": "{text}", "verbalizer": [" no", " yes"]} if form == "verbalizer" else {}
    cfg = config(path=lines(*rows), block_size=32, eval_limit=5, **fields)
    tokenizer = byte_level("both")
    data = prepare_text(open_text(cfg, form), cfg, 0, tokenizer, 512)
    whole = composed("backbone=llama_small")

    class Uniform(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 512))

    task = Language(Uniform(), whole, tokenizer)
    scored = special = 0
    for item in data.test:
        task.evaluate("test", data.collate([item]))
        one = item.candidates[item.gold] if form == "verbalizer" else item
        ids = [int(token) for token in one.labels if token >= 0]
        scored += len(ids)
        special += sum(token in tokenizer.all_special_ids for token in ids)
    assert special > 0 or form != "text"
    assert task.results("test")["bpb"] == pytest.approx(math.log2(512) * scored / (scored - special))
