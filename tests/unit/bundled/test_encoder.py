"""The bundled encoder: its task is fixed and gives nothing away, its weights load, and they can be made again."""

import re
from collections import Counter

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from foura.bundled import docstrings, pretrain_encoder
from foura.bundled.docstrings import LIBRARIES, LONGEST, SHORTEST, description, load_docstrings, read_docstrings
from foura.bundled.encoder import BUNDLED_ENCODER, FOLDER
from foura.errors import UserError
from foura.files import verify_checksum

WEIGHTS = FOLDER / "model.safetensors"


def test_the_task_is_balanced_and_the_same_every_time(monkeypatch) -> None:
    task = load_docstrings()
    load_docstrings.cache_clear()
    assert load_docstrings() == task
    counts = Counter(task.labels)
    assert set(counts) == set(range(len(LIBRARIES))) and len(set(counts.values())) == 1
    assert counts[0] >= 100
    assert set(Counter(task.labels[: 8 * 10]).values()) == {10}  # so is any beginning of it
    assert len(set(task.texts)) == len(task.texts) == len(task.groups)
    assert all(SHORTEST <= len(text) <= LONGEST for text in task.texts)
    assert all(group.startswith(LIBRARIES[label] + "/") for group, label in zip(task.groups, task.labels, strict=True))
    assert max(Counter(task.groups).values()) <= docstrings.PER_FILE


def test_no_text_of_the_task_names_a_library() -> None:
    names = re.compile("|".join(LIBRARIES) + r"|scikit|hugging ?face|\b(np|pd|plt)\.|>>>|(?-i:^import )", re.IGNORECASE)
    assert [text for text in load_docstrings().texts if names.search(text)] == []


def test_a_description_ends_where_the_first_section_begins() -> None:
    text = "Return a `torch.Tensor` like :class:`~pandas.DataFrame`,\nsee [`~transformers.Model`] and MlflowClient.\n\n"
    wanted = "Return a Tensor like DataFrame, see Model and Client."
    for section in ("Parameters\n----------\nx : int", "Args:\n    x: an int", ">>> f(1)\n2", ":param x: an int"):
        assert description(text + section) == wanted
    assert description("word " * 200) == ("word " * 80).strip()


def test_a_library_with_few_docstrings_makes_the_task_smaller(monkeypatch) -> None:
    def few(library: str, known: set[str]):
        return ((f"{library} {i}", f"{library}/a.py") for i in range(3 if library == "scipy" else 9))

    load_docstrings.cache_clear()
    monkeypatch.setattr(docstrings, "_descriptions", few)
    task = load_docstrings()
    load_docstrings.cache_clear()
    assert set(Counter(task.labels).values()) == {3}
    monkeypatch.undo()
    with pytest.raises(ImportError, match="no_such_library is not installed"):
        docstrings.source_files("no_such_library")


def test_files_that_are_not_python_have_no_docstrings(tmp_path) -> None:
    file = tmp_path / "template.py"
    for content in (b"{{ name }} = import", b"'''\xff'''", b"x = 1\0"):
        file.write_bytes(content)
        assert list(read_docstrings(file)) == []
    file.write_text('"""A."""\nclass B:\n    """C \\d."""\n    def d(self):\n        """E."""\n')
    assert list(read_docstrings(file)) == ["A.", "C \\d.", "E."]


def test_the_weights_load_with_a_new_head_alone() -> None:
    model, found = AutoModelForSequenceClassification.from_pretrained(
        FOLDER, num_labels=8, use_safetensors=True, output_loading_info=True
    )
    assert set(found["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert all(key.startswith("cls.") for key in found["unexpected_keys"])
    _, found = AutoModelForMaskedLM.from_pretrained(FOLDER, use_safetensors=True, output_loading_info=True)
    assert not found["missing_keys"]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == BUNDLED_ENCODER["vocab_size"] == model.config.vocab_size
    assert tokenizer.pad_token_id == model.config.pad_token_id
    batch = tokenizer(["Return the index.", "日本"], padding=True, return_tensors="pt")
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens[0] == "[CLS]" and "[SEP]" in tokens
    assert model(**batch).logits.shape == (2, 8)


def test_the_model_predicts_masked_words() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, dtype=torch.float32)
    batch = tokenizer("This function returns the number [MASK] elements of the array.", return_tensors="pt")
    place = batch["input_ids"][0] == tokenizer.mask_token_id
    with torch.no_grad():
        best = model(**batch).logits[0, place].topk(20).indices[0]
    assert "of" in [tokenizer.decode(token).strip() for token in best]  # of 3,072 tokens


def test_the_checksum_is_of_the_weights(tmp_path) -> None:
    assert WEIGHTS.with_name("model.safetensors.sha256").is_file()
    verify_checksum(WEIGHTS)
    assert WEIGHTS.stat().st_size < 3_000_000
    content = bytearray(WEIGHTS.read_bytes())
    content[-1] ^= 1
    damaged = tmp_path / WEIGHTS.name
    damaged.write_bytes(content)
    (tmp_path / "model.safetensors.sha256").write_text(WEIGHTS.with_name("model.safetensors.sha256").read_text())
    with pytest.raises(UserError, match="is damaged"):
        verify_checksum(damaged)


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_writes_all(tmp_path, monkeypatch) -> None:
    texts = [text for text in load_docstrings().texts for _ in range(2)]
    documents = [" ".join(texts[start : start + 40]) for start in range(0, 800, 40)]
    monkeypatch.setattr(pretrain_encoder, "english", lambda: (documents[:-4], documents[-4:]))
    monkeypatch.setattr(pretrain_encoder, "BATCH", 1024)
    lines: list[str] = []
    pretrain_encoder.pretrain_encoder(tmp_path, epochs=2, seed=0, report=lambda line: lines.append(str(line)))
    first, last = (float(re.search(r"held-out ([\d.]+)", line)[1]) for line in lines)
    assert last < first < 8.1
    verify_checksum(tmp_path / "model.safetensors")
    assert {path.name for path in tmp_path.iterdir()} >= {path.name for path in FOLDER.iterdir()}
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.dtype == torch.float16 and again.config.vocab_size == BUNDLED_ENCODER["vocab_size"]


def test_the_pretraining_text_has_none_of_the_task() -> None:
    assert not set(pretrain_encoder.PACKAGES) & set(LIBRARIES)
