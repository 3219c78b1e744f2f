"""The bundled language model: it reads every byte and better than chance, and generates as it is trained."""

import math

import pytest
import torch
from omegaconf import OmegaConf

from foura.errors import UserError
from foura.families.language.backbone import build_llama
from foura.families.language.sources import open_text
from foura.schema import BackboneConfig
from tests.helpers.texts import config, prepared


def test_the_bundled_text_and_model_are_there(llama) -> None:
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


def test_a_tokenizer_of_another_model_is_refused(llama, tmp_path) -> None:
    import copy

    model = copy.deepcopy(llama.model)
    model.resize_token_embeddings(1000)
    model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    cfg = OmegaConf.structured(BackboneConfig(family="llama_small", name=str(tmp_path / "model")))
    with pytest.raises(UserError, match=r"the tokenizer has 1024 tokens and the model 1000"):
        build_llama(cfg)
