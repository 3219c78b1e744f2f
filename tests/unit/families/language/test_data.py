"""Texts: cut into splits and blocks, with what is learnt and what is not, and label noise."""

import torch

from foura.families.language.data import cut, mislabel
from foura.families.language.formats import Example
from foura.families.language.sources import TextSource, open_text
from foura.families.language.tokens import IGNORED
from tests.helpers.texts import config, prepared


def test_documents_go_to_one_side_whole_and_stay_there() -> None:
    source = TextSource({"train": [Example(str(i), f"text {i}") for i in range(50)]}, "text")
    parts = cut(source, config(val_fraction=0.2, test_fraction=0.2))
    names = [{example.name for example in parts[name]} for name in ("train", "validation", "test")]
    assert [len(part) for part in names] == [30, 10, 10]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert parts == cut(source, config(val_fraction=0.2, test_fraction=0.2))
    assert parts != cut(source, config(val_fraction=0.2, test_fraction=0.2, split_seed=1))


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


def test_the_fixed_part_of_train_follows_the_split_seed_and_keeps_the_order_of_train(llama) -> None:
    """Of the same training items it was the first ones in the order of the run's seed: others for every seed."""
    source = open_text(config(source="stdlib"), "text")

    def fixed(seed: int, **fields) -> tuple[list, list, list]:
        data = prepared(source, llama, seed, eval_limit=8, train_eval_limit=30, **fields)
        assert data.observed == [data.train[place] for place in data.fixed] and len(data.observed) == 30
        return tuple([item.ids.tolist() for item in part] for part in (data.train_eval, data.observed, data.train))

    one, two, other = fixed(0), fixed(1), fixed(0, split_seed=1)
    assert one[0] == one[1] != two[0] == two[1] and sorted(one[0]) == sorted(two[0]) != sorted(other[0])
    for part, _, train in (one, two):
        assert [ids for ids in train if ids in part] == part
    few = fixed(0, limit=50)
    assert [ids for ids in few[2] if ids in few[0]] == few[0] != few[2][:30]
    every = prepared(source, llama, limit=20, eval_limit=8, train_eval_limit=20)
    assert every.fixed == list(range(20))


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


def test_label_noise_makes_the_share_wrong_and_depends_on_the_seed() -> None:
    examples = [Example(str(i), "a", "p", ("a", "b", "c"), 0) for i in range(100)]
    noisy = mislabel(examples, 0.3, seed=0)
    assert sum(example.gold != 0 for example in noisy) == 30
    assert all(example.text == example.choices[example.gold] for example in noisy)
    assert mislabel(examples, 0.3, seed=0) == noisy != mislabel(examples, 0.3, seed=1)
