"""Text: formats, cutting, blocks and labels; and the measures of a language model against values worked out by hand."""

import json
import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from foura.errors import UserError
from foura.families.language.backbone import build_llama
from foura.families.language.data import cut, mislabel, prepare_text
from foura.families.language.formats import Example
from foura.families.language.sources import TextSource, open_text
from foura.families.language.task import Language
from foura.families.language.tokens import IGNORED, collate
from foura.schema import BackboneConfig, DatasetConfig
from tests.helpers.config import composed


def config(**fields):
    return OmegaConf.structured(DatasetConfig(name="test", source=fields.pop("source", "jsonl"), **fields))


@pytest.fixture(scope="module")
def llama():
    return build_llama(OmegaConf.structured(BackboneConfig(family="llama_small", gate_scope="token")))


@pytest.fixture
def lines(tmp_path):
    """Writes records as JSON lines and returns the file."""

    def write(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


def prepared(source, llama, seed=0, **fields):
    return prepare_text(source, config(**fields), seed, llama.tokenizer, llama.max_tokens)


def test_the_embedded_text_and_model_are_there(llama) -> None:
    source = open_text(config(source="stdlib"), "text")
    assert len(source.splits["train"]) > 40
    data = prepared(source, llama, limit=16, eval_limit=8)
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 8, 8)
    batch = data.collate(data.train[:4])
    loss = float(llama.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
    assert loss < 0.75 * math.log(llama.model.config.vocab_size)  # it reads better than chance


def test_every_byte_can_be_read(llama) -> None:
    text = "naïve 漢字 \x00 €\n\ttab"
    assert llama.tokenizer.decode(llama.tokenizer(text)["input_ids"]) == text


def test_documents_go_to_one_side_whole_and_stay_there() -> None:
    source = TextSource({"train": [Example(str(i), f"text {i}") for i in range(50)]}, "text")
    parts = cut(source, config(val_fraction=0.2, test_fraction=0.2))
    names = [{example.name for example in parts[name]} for name in ("train", "validation", "test")]
    assert [len(part) for part in names] == [30, 10, 10]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert parts == cut(source, config(val_fraction=0.2, test_fraction=0.2))


def test_one_long_document_is_cut_into_consecutive_parts() -> None:
    text = "".join(chr(97 + i % 26) for i in range(1000))
    parts = cut(TextSource({"train": [Example("book", text)]}, "text"), config(val_fraction=0.1, test_fraction=0.2))
    assert [len(parts[name][0].text) for name in ("train", "validation", "test")] == [700, 100, 200]
    assert "".join(parts[name][0].text for name in ("train", "validation", "test")) == text


def test_the_limit_draws_by_seed_and_validation_stays(llama) -> None:
    source = open_text(config(source="stdlib"), "text")
    one, two, again = (prepared(source, llama, seed, limit=8, eval_limit=8) for seed in (0, 1, 0))

    def ids(items):
        return [item.ids.tolist() for item in items]

    assert ids(one.validation) == ids(two.validation) and ids(one.test) == ids(two.test)
    assert ids(one.train) != ids(two.train) and ids(one.train) == ids(again.train)
    assert one.fingerprint == again.fingerprint != two.fingerprint


def test_blocks_join_documents_and_count_their_bytes(llama) -> None:
    source = TextSource(
        {name: [Example("a", "one two three " * 40)] for name in ("train", "validation", "test")}, "text"
    )
    data = prepared(source, llama, block_size=32)
    block = data.train[0]
    assert block.ids.shape == (32,) and block.labels[0] == IGNORED and torch.equal(block.labels[1:], block.ids[1:])
    assert block.bytes == len(llama.tokenizer.decode(block.ids[1:]).encode())


def test_a_completion_is_learnt_and_its_prompt_is_not(llama, lines) -> None:
    rows = [{"prompt": f"Question {i}:", "completion": f" answer {i}"} for i in range(20)]
    source = open_text(config(path=lines(*rows)), "completion")
    data = prepared(source, llama, block_size=64)
    item = data.train[0]
    learnt = llama.tokenizer.decode(item.ids[item.labels != IGNORED])
    assert learnt.startswith(" answer") and learnt.endswith("<|endoftext|>")
    assert llama.tokenizer.decode(item.ids[item.labels == IGNORED]).startswith("Question")
    assert not data.packed and not data.judged


def test_a_prompt_that_is_too_long_loses_its_beginning(llama, lines) -> None:
    rows = [{"prompt": "x " * 200 + "END", "completion": " yes"} for _ in range(10)]
    item = prepared(open_text(config(path=lines(*rows)), "completion"), llama, block_size=16).train[0]
    assert len(item.ids) == 16
    assert "END yes" in llama.tokenizer.decode(item.ids)


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


def test_label_noise_makes_the_share_wrong_and_depends_on_the_seed() -> None:
    examples = [Example(str(i), "a", "p", ("a", "b", "c"), 0) for i in range(100)]
    noisy = mislabel(examples, 0.3, seed=0)
    assert sum(example.gold != 0 for example in noisy) == 30
    assert all(example.text == example.choices[example.gold] for example in noisy)
    assert mislabel(examples, 0.3, seed=0) == noisy != mislabel(examples, 0.3, seed=1)


class Fixed(nn.Module):
    """A language model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask):
        return type("Output", (), {"logits": self.logits[: len(input_ids), : input_ids.shape[1]]})()


def test_loss_accuracy_and_bits_per_byte_by_hand(llama) -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]])
    task = Language(Fixed(probabilities.log()[None]), composed("backbone=llama_small"), llama.tokenizer)
    batch = {
        "input_ids": torch.tensor([[0, 1, 2]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.long),
        "labels": torch.tensor([[IGNORED, 1, 2]]),
        "bytes": torch.tensor([5]),
    }
    task.evaluate("test", batch)
    nats = -math.log(0.25) - math.log(0.8)
    expected = {"loss": nats / 2, "acc": 0.5, "ppl": math.exp(nats / 2), "bpb": nats / math.log(2) / 5}
    assert task.results("test") == pytest.approx(expected, rel=1e-6)


def test_the_likeliest_choice_is_the_answer(llama, lines) -> None:
    """Scored one by one by the model itself, without batching or padding."""
    rows = [
        {"sentence": s, "label": i % 2} for i, s in enumerate(["the", "a matrix of", "Returns", "see also the"] * 5)
    ]
    fields = {"template": "{sentence}", "verbalizer": [" array", " zebra of the sea"]}
    data = prepared(open_text(config(path=lines(*rows), **fields), "verbalizer"), llama)
    assert data.judged
    task = Language(llama.model, composed("backbone=llama_small"), llama.tokenizer)
    llama.model.eval()
    with torch.no_grad():
        task.evaluate("val", collate(data.validation, llama.tokenizer.pad_token_id))
    right, nats, tokens = 0, 0.0, 0
    for question in data.validation:
        scores = []
        for choice in question.candidates:
            with torch.no_grad():
                logits = llama.model(choice.ids[None]).logits[0, :-1].log_softmax(-1)
            wanted = choice.labels[1:]
            scores.append(float(logits[wanted != IGNORED, wanted[wanted != IGNORED]].sum()))
        right += scores.index(max(scores)) == question.gold
        nats -= scores[question.gold]
        tokens += int((question.candidates[question.gold].labels != IGNORED).sum())
    result = task.results("val")
    assert result["acc"] == pytest.approx(right / len(data.validation))
    assert result["loss"] == pytest.approx(nats / tokens, rel=1e-4)


def test_generation_with_a_cache_is_the_full_forward(llama) -> None:
    """A gate for each token: what was said before does not change what is said next, however it is computed."""
    import copy

    from peft import get_peft_model

    from foura import FouraConfig

    settings = {"gate": "adaptive", "gate_scope": "token", "target_modules": llama.targets, "init_weights": False}
    model = get_peft_model(copy.deepcopy(llama.model), FouraConfig(r=8, foura_alpha=8, **settings)).eval()
    prompt = torch.tensor([llama.tokenizer("The array is")["input_ids"]])
    plain = {"do_sample": False, "pad_token_id": llama.tokenizer.pad_token_id, "eos_token_id": None}
    options = {"max_new_tokens": 24, "output_logits": True, "return_dict_in_generate": True, **plain}
    cached = model.generate(input_ids=prompt, use_cache=True, **options)
    with torch.no_grad():
        full = model(input_ids=cached.sequences).logits[:, prompt.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(cached.logits, 1), full, rtol=1e-4, atol=1e-4)
    assert torch.equal(full.argmax(-1), cached.sequences[:, prompt.shape[1] :])


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
    refused("dataset.format=completion needs records", source="stdlib", form="completion")
    refused("broken.jsonl, line 2 is not JSON", path=str(tmp_path / "broken.jsonl"))
    refused("no field 'text'.*it has: body, label", path=lines({"body": "x", "label": 1}))
    refused("no field 'completion'", path=lines({"prompt": "x"}), form="completion")
    refused("holds int, not text", path=lines({"text": 3}))
    refused("Answer format", path=lines({**COMMONSENSE, "instruction": "?"}), form="commonsense")
    refused("not among the choices", path=lines({**COMMONSENSE, "answer": "answer9"}), form="commonsense")
    refused("needs dataset.template", path=lines({"sentence": "x", "label": 0}), form="verbalizer")
    words = {"template": "{sentence}", "verbalizer": ["a", "b"]}
    refused("is 7, and dataset.verbalizer", path=lines({"sentence": "x", "label": 7}), form="verbalizer", **words)
    with pytest.raises(UserError, match=r"which dataset\.format=text does not have"):
        prepared(open_text(config(source="stdlib"), "text"), llama, label_noise=0.2)
    with pytest.raises(UserError, match="more than the model's context of 512"):
        prepared(open_text(config(source="stdlib"), "text"), llama, block_size=4096)


def test_a_tokenizer_of_another_model_is_refused(llama, tmp_path) -> None:
    import copy

    model = copy.deepcopy(llama.model)
    model.resize_token_embeddings(1000)
    model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    cfg = OmegaConf.structured(BackboneConfig(family="llama_small", name=str(tmp_path / "model")))
    with pytest.raises(UserError, match=r"the tokenizer has 1024 tokens and the model 1000"):
        build_llama(cfg)
