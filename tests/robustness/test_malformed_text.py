"""Malformed text and JSON files are read or refused in one sentence; nothing hangs, and no template is executed."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import strategies as st
from omegaconf import OmegaConf

from foura.errors import UserError
from foura.families.diffusion.backbone import caption_bytes
from foura.families.diffusion.sources import open_captioned
from foura.families.language.data import prepare_text
from foura.families.language.sources import open_text
from foura.schema import DatasetConfig
from tests.helpers.hostile import BYTES, VALUES, mutated, refused, try_all

LINES, TEXTS, TEMPLATES, CAPTIONS = 1200, 1200, 2000, 1200  # examples of make test-all
CHOICES = ("commonsense", "verbalizer")
FORMATS = ("text", "completion", *CHOICES)
RECORD = {
    "text": "a text",
    "prompt": "a question",
    "completion": " its answer",
    "instruction": "Which?\n\nAnswer format: one/two",
    "output": "it is two",
    "answer": "two",
    "sentence": "a film",
    "label": 1,
    "0": "zero",
    "x.__class__": "y",
}
LIKELY = {
    "instruction": [
        *(f"Answer format:{listed}" for listed in ("", " a", " a//b", " two/two", " one/two/", "a/" * 999)),
        "Answer format: a" + " " * 99_999 + "b/two",
    ],
    "answer": ["", "one", "three", "/", "is"],
    "label": [-1, 2, True, 1.0, "1", None, 10**30],
    "text": ["", " ", "\ud800", "a\u2028b", "\x00", "x" * 5000],
}
RAW = (
    "",
    "\n \r\n",
    "\ufeff" + json.dumps(RECORD),
    json.dumps(RECORD) + "\r\n" + json.dumps(RECORD),
    "[" * 100_000,
    '{"text": ' * 20_000,
    '{"label": ' + "9" * 5000 + "}",
    '{"label": NaN, "text": Infinity}',
    '{"text": "a", "text": "b", "text": 3}',
    '{"text": "' + "\u2028".join("ab") + '\u0085"}',
    '{"' + "key\\n" * 3000 + '": 1}',
    json.dumps(RECORD)[:-3],
    "null",
    '"text"',
)


def config(path: Path | str, source: str, **fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=source, path=str(path), **fields))


class Letters:
    """The least of a tokenizer: a token a character. It says no to what has no bytes, as real ones do."""

    pad_token_id = eos_token_id = bos_token_id = 0
    all_special_ids = (0,)

    def __call__(self, text, **_):
        text.encode()
        return {"input_ids": [ord(letter) % 250 for letter in text]}

    def convert_ids_to_tokens(self, ids):
        return [chr(token) for token in ids]


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def read(cfg, form: str) -> None:
    data = prepare_text(open_text(cfg, form), cfg, 0, Letters(), 512)
    for part in (data.train, data.validation, data.test):
        data.collate(part[:3])


def lines(path: Path, form: str, **fields) -> bool:
    noise = {"label_noise": 0.5} if form in CHOICES else {}
    fields = {"template": "{sentence} It was", "verbalizer": [" bad", " good"], **noise, **fields}
    return refused(lambda: read(config(path, "jsonl", block_size=8, **fields), form))


@pytest.mark.parametrize("form", FORMATS)
def test_any_json_lines_are_read_or_refused(form, tmp_path) -> None:
    path = tmp_path / "data.jsonl"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        lines(path, form)

    row = st.one_of(mutated(RECORD, LIKELY), mutated(RECORD, LIKELY), VALUES, st.just(RECORD)).map(json.dumps)
    content = st.lists(row | st.text(max_size=20), min_size=1, max_size=8).map("\n".join).map(encoded)
    for text in RAW:
        check(encoded(text))
    try_all(content | content | BYTES, check, LINES)


def test_what_is_no_mistake_is_read(tmp_path) -> None:
    """A byte order mark, Windows' line ends, and breaks in strings that Python's splitlines would cut at."""
    path = tmp_path / "data.jsonl"
    good = [json.dumps({"text": f"number {i}\u2028 \u0085 of many"}, ensure_ascii=False) for i in range(20)]
    path.write_bytes("\r\n".join(["\ufeff" + good[0], *good[1:]]).encode())
    assert [example.text for example in open_text(config(path, "jsonl"), "text").splits["train"]][3].startswith(
        "number 3"
    )
    assert not lines(path, "text")
    path.write_text("\n".join([json.dumps(RECORD)] * 20))
    for form in FORMATS:
        assert not lines(path, form), form


def test_templates_are_filled_in_and_never_formatted(tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([json.dumps(RECORD)] * 10))
    pieces = [
        "{",
        "}",
        "{{",
        "}}",
        "{}",
        "{0}",
        "{0.x}",
        "{x.__class__}",
        "{sentence.__class__.__mro__}",
        "{sentence[0]}",
    ]
    pieces += ["{label}", "{sentence}", "It", "{sentence!r}", "{sentence:>999999999}", "{sentence:{label}}", "{a\nb}"]
    template = st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=4).map("".join)
    template = template.filter(lambda text: "${" not in text)  # OmegaConf's, which refuses it before it is a template
    words = st.lists(st.sampled_from(["", " good", " bad", "x" * 2000, "\u2028"]), max_size=3)

    def check(given: tuple[str, list[str]]) -> None:
        lines(path, "verbalizer", template=given[0], verbalizer=given[1])

    try_all(st.tuples(template, words), check, TEMPLATES)
    examples = open_text(
        config(path, "jsonl", template="{x.__class__} {0} {{}}", verbalizer=["a", "b"]), "verbalizer"
    ).splits
    assert examples["train"][0].prompt == "y zero {}"


def test_any_text_files_are_read_or_refused(tmp_path) -> None:
    def check(files: list[bytes]) -> None:
        for number, content in enumerate(files):
            (tmp_path / f"{number}.txt").write_bytes(content)
        for path in (tmp_path, tmp_path / "0.txt"):
            refused(lambda path=path: read(config(path, "text", block_size=8), "text"))

    written = [
        text.encode(code) for text in ("naïve €", "x" * 300) for code in ("utf-16", "utf-8-sig", "cp1252", "utf-8")
    ]
    content = st.one_of(BYTES, st.sampled_from([*written, b"", b" \n\t", b"\x00" * 50]), st.text().map(str.encode))
    try_all(st.lists(content, min_size=1, max_size=3), check, TEXTS)


@pytest.mark.parametrize("source", ["text", "jsonl", "hf", "imagefolder"])
def test_paths_that_are_no_files_do_not_hang(source, tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.jsonl").symlink_to("/dev/zero")
    (tmp_path / "folder" / "a.txt").symlink_to("/dev/zero")
    places = [str(tmp_path / name) for name in ("pipe", "loop", "folder", "x" * 300)]
    places += ["/dev/zero", "\x00", "~nobody-of-that-name/x", "", "a\nb", "../" * 2000, "/nowhere/\udc80"]
    for place in places:
        cfg = config(place, source)
        opened = open_captioned if source == "imagefolder" else lambda cfg: open_text(cfg, "text")
        assert refused(lambda cfg=cfg, opened=opened: opened(cfg)), place


def test_any_captions_are_read_or_refused(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    record = {"file_name": "a.png", "text": "a caption"}
    likely = {
        "file_name": ["../a.png", "/etc/passwd", "a.png\x00", "./a.png", ["a.png"]],
        "text": ["", " ", None, 3, "\ud800"],
    }
    row = st.one_of(mutated(record, likely), mutated(record, likely), VALUES, st.just(record)).map(json.dumps)
    content = st.lists(row, min_size=1, max_size=4).map("\n".join) | st.text(max_size=30)

    def check(text: str) -> None:
        (tmp_path / "metadata.jsonl").write_bytes(encoded(text))
        refused(lambda: caption_bytes(open_captioned(config(tmp_path, "imagefolder"))["train"].captions))

    for text in RAW:
        check(text)
    try_all(content, check, CAPTIONS)


def test_captions_never_lead_out_of_their_folder(tmp_path) -> None:
    from PIL import Image

    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "a.png")
    rows = [{"file_name": name, "text": "x"} for name in ("a.png", "../secret.png", str(tmp_path / "secret.png"))]
    (tmp_path / "data" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = open_captioned(config(tmp_path / "data", "imagefolder"))["train"].images
    assert [Path(image).name for image in found] == ["a.png"]


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    said = str(UserError("a\nb \x1b[31m \ud800 \u202e" + "x" * 10_000))
    assert said.startswith("a b \\x1b[31m \\ud800 \\u202e") and len(said) < 2000 and said.isprintable()
