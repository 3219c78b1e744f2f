"""Records in every format that people have."""

import gzip
import json

import pytest

from foura.data.tables import read_records
from foura.errors import UserError

ROWS = [{"text": 'say "yes"; or, no', "label": 0}, {"text": "line\nbreak", "label": 1}, {"text": "007", "label": 1}]
LINES = "\n".join(map(json.dumps, ROWS))
CSV = 'text,label\n"say ""yes""; or, no",0\n"line\nbreak",1\n007,1\n'
WRITTEN = {
    "a.jsonl": LINES,
    "b.jsonl": "\ufeff" + LINES.replace("\n", "\r\n\r\n"),
    "a.json": json.dumps(ROWS, indent=2),
    "b.json": LINES,
    "c.json": json.dumps({"version": "1.0", "data": ROWS}, indent=1),
    "array.jsonl": json.dumps(ROWS),
    "a.ndjson": LINES,
    "A.CSV": CSV,
    "semicolon.csv": CSV.replace("text,label", "text;label").replace('",', '";').replace("007,", "007;"),
    "quoted.tsv": CSV.replace('",', '"\t')
    .replace("text,", "text\t")
    .replace("007,", "007\t")
    .replace("line\nbreak", "line"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_records_are_the_same_in_every_format(name, packed, tmp_path) -> None:
    content = WRITTEN[name].encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = [row for _, row in read_records(path, "label")[0]]
    wanted = [{**row, "text": row["text"].partition("\n")[0]} for row in ROWS] if name == "quoted.tsv" else ROWS
    assert rows == wanted


def test_parquet_keeps_the_names_of_classes(tmp_path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    datasets.Dataset.from_list(ROWS, features=features).to_parquet(tmp_path / "a.parquet")
    named, classes = read_records(tmp_path / "a.parquet")
    assert [row for _, row in named] == ROWS and classes == {"label": ["bad", "good"]}


def test_tabs_without_quoting_as_in_glue(tmp_path) -> None:
    """A quotation mark that is not closed swallows no lines."""
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"it was\t1\nhe said "no\t0\nfine" film\t1\n')
    named, _ = read_records(tmp_path / "train.tsv", "label")
    assert [row for _, row in named] == [
        {"sentence": '"it was', "label": 1},
        {"sentence": 'he said "no', "label": 0},
        {"sentence": 'fine" film', "label": 1},
    ]
    assert [name for name, _ in named] == ["train.tsv, line 2", "train.tsv, line 3", "train.tsv, line 4"]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["0", "1", "-1"], [0, 1, -1]),
        (["1.0", "", "0.0"], [1, None, 0]),  # as pandas writes whole numbers beside missing ones
        (["1.5", "2", "1e-3"], [1.5, 2.0, 0.001]),
        (["01", "02", "10"], ["01", "02", "10"]),  # these name something
        (["bad", "good", "1"], ["bad", "good", "1"]),
    ],
)
def test_labels_of_csv_are_numbers_where_all_are(cells, values, tmp_path) -> None:
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(f"7,{cell}" for cell in cells))
    named, _ = read_records(tmp_path / "a.csv", "label")
    assert [row["label"] for _, row in named] == values and {row["text"] for _, row in named} == {"7"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"text,label\na,1,2\n", "line 2 has 3 cells and the header 2"),
        ("a.csv", b"text,text\na,1\n", "a different name for each column; it has: text, text"),
        ("a.csv", b" \n\n", "is empty"),
        ("a.json", b'[{"text": "a"}, 3]', "item 1 is int, not an object with fields"),
        ("a.json", b'[{"text": "a"', "is not JSON"),
        ("a.json", b'{\n"text": "a"\n', "line 1 is not JSON"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "is a damaged gzip file"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", "text\nnaïve\n".encode("cp1252"), "is not UTF-8 text"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(name, content, words, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words):
        read_records(tmp_path / name)


def test_a_small_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("foura.files.UNPACKED", 1000)
    monkeypatch.setattr("foura.files.PACKED_BY", 1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b" " * 2000))
    with pytest.raises(UserError, match="holds more than 1035 when it is unpacked"):
        read_records(tmp_path / "a.jsonl.gz")
