"""Labelled texts: classes and numbers read from records, bad labels refused, splits that never mix."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from foura.bundled.encoder import FOLDER
from foura.errors import UserError
from foura.families.encoder.data import prepare_labelled
from foura.families.encoder.sources import Labelled, LabelledSource, open_labelled
from foura.schema import ColumnsConfig, DatasetConfig
from tests.helpers.tokenizers import byte_level


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture
def lines(tmp_path):
    """lines(*rows): a file of JSON lines; lines(train=[…], test=[…]): a folder of them."""

    def write(*rows, **splits):
        if not splits:
            path = tmp_path / "data.jsonl"
            path.write_text("\n".join(json.dumps(row) for row in rows))
            return str(path)
        for name, part in splits.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
        return str(tmp_path)

    return write


def config(**fields):
    columns = ColumnsConfig(**fields.pop("columns", {}))
    made = DatasetConfig(name="test", source=fields.pop("source", "jsonl"), columns=columns, **fields)
    return OmegaConf.structured(made)


def rows(count: int, label=lambda i: i % 2):
    return [{"text": f"the text number {i}", "label": label(i)} for i in range(count)]


@pytest.mark.parametrize(
    ("label", "format", "said"),
    [
        (lambda i: i / 2, "classification", r"line 1: dataset.columns.label=label is 0.0, and classes are texts or"),
        (
            lambda i: "ab"[i % 2],
            "regression",
            r"line 1: dataset.columns.label=label is 'a', and regression needs finite",
        ),
        (lambda i: i % 2 == 0, "regression", "is True, and regression needs finite numbers"),
        (lambda i: 3, "classification", r"the training data has one class \(3\); a classifier needs at least 2"),
        (lambda i: None, "classification", "the train split has no labels in the column 'label'"),
        (lambda i: [i], "classification", r"is \[0\], and classes are texts or integers"),
        (lambda i: float("nan"), "regression", "is nan, and regression needs finite numbers"),
    ],
)
def test_labels_of_the_wrong_kind_are_refused(label, format, said, lines) -> None:
    with pytest.raises(UserError, match=said):
        open_labelled(config(path=lines(*rows(6, label))), format)


@pytest.mark.parametrize(
    ("row", "columns", "said"),
    [
        ({"text": "a", "label": 0}, {"text_pair": "other"}, r"no field 'other' \(dataset.columns.text_pair=other\)"),
        ({"text": 3, "label": 0}, {}, "the field 'text' holds int, not text"),
        ({"text": "\ud800", "label": 0}, {}, "holds half a character"),
        ({"sentence": "a", "label": 0}, {}, r"no field 'text' \(dataset.columns.text=text\); it has: sentence, label"),
    ],
)
def test_texts_that_are_none_are_refused(row, columns, said, lines) -> None:
    with pytest.raises(UserError, match=said):
        open_labelled(
            config(path=lines(row, {"text": "b", "other": "c", "label": 1}), columns=columns), "classification"
        )


@pytest.mark.parametrize("format", ["classification", "regression"])
@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_data_without_records_is_refused(ending, format, tmp_path) -> None:
    import pandas

    def write(split: str, count: int):
        frame = pandas.DataFrame(rows(10))[:count]
        path = tmp_path / f"{split}.{ending}"
        if ending == "csv":
            frame.to_csv(path, index=False)
        elif ending == "json":
            frame.to_json(path, orient="records")
        else:
            frame.to_parquet(path)
        return path

    with pytest.raises(UserError, match=r"dataset\.path=.*: the train split is empty"):
        open_labelled(config(path=str(write("train", 0))), format)
    write("train", 10), write("test", 0)
    with pytest.raises(UserError, match=r"dataset\.path=.*: the test split is empty"):
        open_labelled(config(path=str(tmp_path)), format)


@pytest.mark.parametrize("label", ["", " ", None])
def test_a_label_that_is_missing_is_no_class(label, lines) -> None:
    labels = ["pos", "neg", "pos", label, "neg", label]
    wanted = r"2 of 6 items of the train split have no label \(the first is data\.jsonl, line 4\)"
    with pytest.raises(UserError, match=wanted):
        open_labelled(config(path=lines(*rows(6, lambda i: labels[i]))), "classification")


@pytest.mark.parametrize("labels", [("pos", "neg", ""), (0, 1, "")])
def test_an_empty_cell_is_no_class(labels, tmp_path) -> None:
    cells = "".join(f"text {i},{label}\n" for i, label in enumerate(labels))
    (tmp_path / "data.csv").write_text(f"text,label\n{cells}")
    with pytest.raises(
        UserError, match=r"1 of 3 items of the train split have no label \(the first is data\.csv, line 4"
    ):
        open_labelled(config(path=str(tmp_path / "data.csv")), "classification")


def test_a_hidden_label_among_declared_classes_is_refused(tmp_path) -> None:
    """-1 stands for none in a column of classes; in a column of integers it is one of them."""
    import datasets

    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    columns = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(
        UserError, match=r"1 of 3 items of the train split have no label \(the first is data\.parquet, row 2"
    ):
        open_labelled(config(path=str(tmp_path / "data.parquet")), "classification")
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "data.parquet")
    assert open_labelled(config(path=str(tmp_path / "data.parquet")), "classification").classes == ["-1", "0", "1"]


def test_classes_are_numbered_in_order_and_a_later_split_may_not_have_others(lines) -> None:
    source = open_labelled(config(path=lines(*rows(6, lambda i: ["no", "yes", "maybe"][i % 3]))), "classification")
    assert source.classes == ["maybe", "no", "yes"]
    assert source.splits["train"].labels.tolist() == [1, 2, 0, 1, 2, 0]
    with pytest.raises(UserError, match="the test split has classes that train lacks: 7"):
        open_labelled(config(path=lines(train=rows(4), test=rows(2, lambda i: 7))), "classification")


def test_a_split_without_labels_is_left_out(lines) -> None:
    """GLUE's test data has -1 for every label: the test split is then cut from the training data."""
    source = open_labelled(config(path=lines(train=rows(20), test=rows(4, lambda i: -1))), "classification")
    assert set(source.splits) == {"train"}


def test_numbers_are_kept_as_they_are(lines, tokenizer) -> None:
    path = lines(*({"a": "x", "b": f"y {i}", "label": i / 4} for i in range(40)))
    cfg = config(path=path, columns={"text": "a", "text_pair": "b"}, limit=10)
    source = open_labelled(cfg, "regression")
    data = prepare_labelled(source, cfg, 0, tokenizer, 256)
    assert data.classes is None and len(data.train) == 10
    batch = data.collate(data.train[:3])
    texts = tokenizer.batch_decode(batch["input_ids"])
    wanted = [round(float(label) * 4) for label in batch["labels"]]
    assert all(f"y {number}[SEP]" in text for text, number in zip(texts, wanted, strict=True))
    assert batch["labels"].dtype.is_floating_point


def test_splits_never_mix_and_follow_the_seed(tokenizer) -> None:
    cfg = config(path="x", limit=30, val_fraction=0.2, test_fraction=0.2)
    items = Labelled([f"word {i}" for i in range(100)], None, np.arange(100) % 4)

    def cut(seed: int):
        data = prepare_labelled(LabelledSource({"train": items}, list("abcd")), cfg, seed, tokenizer, 256)
        return [{tuple(ids) for ids, _ in part} for part in (data.train, data.validation, data.test)]

    train, validation, test = cut(0)
    assert [len(part) for part in (train, validation, test)] == [30, 20, 20]
    assert not train & validation and not train & test and not validation & test
    assert cut(0) == [train, validation, test]
    other = cut(1)
    assert other[1:] == [validation, test] and other[0] != train  # the seed draws training items alone


def test_the_commonest_class_is_counted_on_validation_data(tokenizer) -> None:
    cfg = config(path="x", val_fraction=0.2, test_fraction=0.2)
    items = Labelled([f"word {i}" for i in range(100)], None, (np.arange(100) % 4 > 0).astype(int))
    data = prepare_labelled(LabelledSource({"train": items}, ["a", "b"]), cfg, 0, tokenizer, 256)
    assert data.commonest == 0.75 and len(data.validation) == 20
    assert prepare_labelled(LabelledSource({"train": items}, None), cfg, 0, tokenizer, 256).commonest is None


def test_the_held_out_items_that_are_kept_follow_the_split_seed_alone(tokenizer) -> None:
    items = Labelled([f"word {i}" for i in range(100)], None, np.arange(100) % 4)

    def cut(seed: int, split_seed: int):
        sizes = {"limit": 30, "eval_limit": 8, "train_eval_limit": 5}
        cfg = config(path="x", val_fraction=0.2, test_fraction=0.2, split_seed=split_seed, **sizes)
        data = prepare_labelled(LabelledSource({"train": items}, list("abcd")), cfg, seed, tokenizer, 256)
        assert len(data.train_eval) == 5 and len(data.validation) == len(data.test) == 8
        places = [data.train.index(item) for item in data.train_eval]
        return data.validation, data.test, places

    assert cut(0, 0) == cut(1, 0) != cut(0, 1)


def test_the_fixed_part_of_texts_sorted_by_class_is_of_all_classes(tokenizer) -> None:
    cfg = config(path="x", train_eval_limit=100)
    names = ("train", "validation", "test")
    parts = {name: Labelled([f"{name} {i}" for i in range(200)], None, np.arange(200) // 100) for name in names}
    data = prepare_labelled(LabelledSource(parts, ["a", "b"]), cfg, 0, tokenizer, 256)
    assert len(data.train) == 200 and 40 <= sum(label for _, label in data.train_eval) <= 60
    assert data.observed == data.train_eval and all(item in data.train for item in data.train_eval)


def test_items_of_a_group_stay_together(tokenizer) -> None:
    cfg = config(path="x")
    groups = [f"file {i // 5}" for i in range(100)]
    items = Labelled([f"word {i}" for i in range(100)], None, np.arange(100) % 2, groups)
    data = prepare_labelled(LabelledSource({"train": items}, ["a", "b"]), cfg, 0, tokenizer, 256)
    group_of = {tuple(tokenizer(text)["input_ids"]): group for text, group in zip(items.texts, groups, strict=True)}
    places = [{group_of[tuple(ids)] for ids, _ in part} for part in (data.train, data.validation, data.test)]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    assert sum(map(len, places)) == 20


def test_label_noise_replaces_classes_and_is_refused_for_numbers(tokenizer) -> None:
    cfg = config(path="x", label_noise=0.25)
    items = Labelled([f"word {i}" for i in range(100)], None, np.arange(100) % 2)
    data = prepare_labelled(LabelledSource({"train": items}, ["a", "b"]), cfg, 0, tokenizer, 256)
    assert len(data.noisy) == round(0.25 * len(data.train))
    with pytest.raises(UserError, match="label_noise replaces classes by others, which regression does not have"):
        prepare_labelled(LabelledSource({"train": items}, None), cfg, 0, tokenizer, 256)


PAIRS = [{"a": f"one {i}", "b": f"two {i}", "label": i % 2} for i in range(30)]


@pytest.mark.parametrize(
    ("template", "pair", "wanted"),
    [
        ("<bos> $A <sep>", "<bos> $A <sep> $B <sep>", "<bos>one 7<sep>two 7<sep>"),
        ("<bos> <bos> $A <sep> <sep>", "<bos> <bos> $A <sep> $B <sep> <sep>", "<bos>one 7<sep>two 7<sep>"),
        ("<bos> $A <sep>", "<bos> $A <sep> <sep> $B <sep>", "<bos>one 7<sep><sep>two 7<sep>"),  # as RoBERTa's
        ("$A", "$A $B", "one 7<sep>two 7"),
    ],
)
def test_pairs_have_their_special_tokens_once(template, pair, wanted, lines) -> None:
    tokenizer = byte_level(template, pair=pair, sep_token="<sep>")
    cfg = config(path=lines(*PAIRS), columns={"text": "a", "text_pair": "b"})
    data = prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256)
    texts = [tokenizer.decode(ids) for part in (data.train, data.validation, data.test) for ids, _ in part]
    assert wanted in texts


@pytest.mark.parametrize(
    ("template", "pair", "wanted"),
    [
        (
            "<bos> $A <sep>",
            "<bos>:0 $A:0 <sep>:0 $B:1 <sep>:1",
            [0] * 7 + [1] * 6,
        ),  # as BERT's: <bos>one 7<sep>two 7<sep>
        ("<bos> <bos> $A <sep>", "<bos>:0 <bos>:0 $A:0 <sep>:0 $B:1 <sep>:1 <sep>:1", [0] * 7 + [1] * 6),
        ("$A", "$A $B", [0] * 11),  # one text, with <sep> between the two
    ],
)
def test_token_types_tell_the_texts_of_a_pair_apart(template, pair, wanted, lines) -> None:
    """Where the special tokens of an end are taken once, the types are too. A shorter item is padded with type 0."""
    tokenizer = byte_level(template, pair=pair, sep_token="<sep>", pad_token="<pad>")
    cfg = config(path=lines(*PAIRS), columns={"text": "a", "text_pair": "b"})
    data = prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256, typed=True)
    items = {
        tokenizer.decode(item[0], skip_special_tokens=True): item for item in data.train + data.validation + data.test
    }
    short, long = items["one 7two 7"], items["one 17two 17"]
    assert short[2] == wanted and len(short[0]) == len(wanted)
    batch = data.collate([short, long])
    assert batch["token_type_ids"].shape == batch["input_ids"].shape == (2, len(wanted) + 2)
    assert batch["token_type_ids"][0].tolist() == [*wanted, 0, 0]
    assert batch["labels"].tolist() == [1, 1]
    plain = prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256)
    assert [item[:2] for item in data.train] == plain.train and "token_type_ids" not in plain.collate(plain.train)


def test_texts_that_are_too_long_are_counted(lines, tokenizer, capsys) -> None:
    path = lines(*({"text": "word " * (100 if i < 4 else 5), "label": i % 2} for i in range(40)))
    cfg = config(path=path, block_size=32, duplicates="keep")
    data = prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256)
    assert sum(data.sizes.values()) == 40 and max(len(ids) for ids, _ in data.train) <= 32
    assert "items are longer than dataset.block_size=32 tokens" in capsys.readouterr().out
    cfg = config(path=path, block_size=32, too_long="drop")
    assert sum(prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256).sizes.values()) == 36
    cfg = config(path=path, block_size=32, too_long="refuse")
    with pytest.raises(UserError, match=r"set dataset\.too_long=cut or drop"):
        prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256)


def test_copies_of_texts_are_left_out_whatever_their_labels(lines, tokenizer, capsys) -> None:
    train, test = (
        [{"text": f"t {i}", "label": i % 2} for i in range(30)],
        [{"text": f"t {i}", "label": 1 - i % 2} for i in range(4)],
    )
    cfg = config(path=lines(train=train, test=test), duplicates="drop")
    data = prepare_labelled(open_labelled(cfg, "classification"), cfg, 0, tokenizer, 256)
    assert "of 4 test items are also in the training data" in capsys.readouterr().out
    assert data.sizes["test"] == 4 and data.sizes["train"] + data.sizes["validation"] == 26


def test_blank_texts_are_left_out_and_hidden_labels_too(lines, capsys) -> None:
    train = [{"text": f"t {i}", "label": i % 2} for i in range(10)] + [
        {"text": " ", "label": 0},
        {"text": None, "label": 0},
    ]
    source = open_labelled(config(path=lines(train=train, test=[{"text": "t"}])), "classification")
    assert set(source.splits) == {"train"} and len(source.splits["train"]) == 10
    said = capsys.readouterr().out
    assert "2 of 12 items of the train split are without text" in said and "the test split has no labels" in said
