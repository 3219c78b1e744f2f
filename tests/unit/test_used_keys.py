"""Keys that have no effect in a run: refused, for every family and method, where they are set to something."""

import pytest
from omegaconf import OmegaConf

from foura import config
from foura.errors import UserError
from foura.families import FAMILIES
from tests.helpers.config import CONF, composed

UNUSED = {
    "backbone.load_in=4bit": "backbone.load_in=4bit has no effect with backbone=vit: it is for backbone=",
    "backbone.gradient_checkpointing=true": "has no effect with backbone=vit: it is for backbone=",
    "backbone.attn_implementation=sdpa": "has no effect with backbone=vit",
    "backbone.torch_dtype=bfloat16": "has no effect with backbone=vit",
    "backbone.text_encoder=true": "has no effect with backbone=vit: it is for backbone=unet",
    "backbone.img_size=32": "here: for backbone=vit it needs own backbone",
    "dataset.path=/my/pictures": "dataset.path=/my/pictures has no effect here: for backbone=vit it needs own data",
    "dataset.block_size=64": "has no effect with backbone=vit",
    "dataset.columns.label=y": "needs dataset=hf",
    "dataset=imagefolder dataset.path=x dataset.config=c": "for backbone=vit it needs dataset=hf",
    "dataset.background=red": "needs own data",
    "backbone=llama_small dataset.unreadable=drop": "needs dataset=text",
    "backbone=llama_small dataset.background=red": "with backbone=llama_small: it is for backbone=",
    "dataset.template=x": "has no effect with backbone=vit: it is for backbone=llama_small",
    "evaluation.guidance=3": "has no effect with backbone=vit: it is for backbone=unet",
    "evaluation.passages=3": "has no effect with backbone=vit: it is for backbone=llama_small",
    "optimizer.text_encoder_lr=1": "has no effect with backbone=vit",
    "backbone=llama_small dataset.style=ice": "has no effect with backbone=llama_small: it is for backbone=unet",
    "backbone=llama_small backbone.load_in=4bit backbone.pretrained=false": "needs pretrained",
    "backbone=llama_small dataset.verbalizer=[a,b]": "for backbone=llama_small it needs verbalizer",
    "backbone=llama_small backbone.img_size=8": "has no effect with backbone=llama_small",
    "backbone=bert evaluation.strengths=[1.0]": "has no effect with backbone=bert",
    "backbone=bert dataset.classes=[a,b]": "has no effect with backbone=bert",
    "backbone=unet backbone.load_in=8bit": "has no effect with backbone=unet",
    "backbone=unet backbone.torch_dtype=float16": "for backbone=unet it needs own backbone",
    "backbone=unet dataset.prompt=x": "needs own data",
    "backbone=unet optimizer.text_encoder_lr=1e-3": "needs text encoder",
    "backbone=unet dataset=imagefolder dataset.path=x dataset.style=ice": "needs bundled data",
    "adapter=lora adapter.transform=dft": "adapter.transform=dft has no effect with adapter=lora",
    "adapter=lora adapter.gate=adaptive": "has no effect with adapter=lora",
    "adapter=lora adapter.gate_scope=token": "adapter.gate_scope=token has no effect with adapter=lora",
    "adapter=foura_dct adapter.gate_lr=1": "has no effect with adapter=foura_dct (of adapter.method=foura)",
    "adapter=foura_dct adapter.gate_form=hard": "adapter.gate_form=hard has no effect with adapter=foura_dct",
    "adapter=foura_dct adapter.gate_sparsity=0.1": "adapter.gate_sparsity=0.1 has no effect with adapter=foura_dct",
    "adapter=foura_dct adapter.transform_seed=1": "adapter.transform_seed=1 has no effect",
    "adapter=foura adapter.sparsity=1": "adapter.sparsity=1.0 has no effect",
    "adapter=head adapter.dropout=0.1": "adapter.dropout=0.1 has no effect with adapter=head",
    "adapter=full +adapter.options.r=3": "adapter.options={'r': 3} has no effect with adapter=full",
    "adapter=full adapter.use_rslora=true": "has no effect with adapter=full",
}
USED = [
    "adapter=foura_random adapter.transform_seed=1",
    "adapter=sora adapter.sparsity=1",
    "adapter=foura adapter.gate_lr=1 adapter.dropout=0.1",
    "adapter=foura_dct_frozen adapter.gate_form=hard adapter.gate_sparsity=0.1",
    "backbone=llama_small backbone.load_in=4bit backbone.torch_dtype=bfloat16 backbone.gradient_checkpointing=true",
    "backbone=llama_small adapter=lora",  # its gate_scope follows the backbone
    "backbone=bert backbone.attn_implementation=eager dataset.block_size=64",
    "backbone=unet evaluation.strengths=[1.0] dataset.style=ice backbone.gradient_checkpointing=true",
    "backbone=unet backbone.name=x/y backbone.text_encoder=true optimizer.text_encoder_lr=1e-3 backbone.torch_dtype=float16",
    "backbone.name=vit_tiny_patch16_224 backbone.img_size=96",
    "dataset=imagefolder dataset.path=x dataset.classes=[a,b]",
    "backbone=llama_small dataset=jsonl dataset.path=x dataset.format=verbalizer dataset.template=a dataset.verbalizer=[a,b]",
]


@pytest.mark.parametrize("overrides", UNUSED)
def test_a_key_without_effect_is_refused(overrides) -> None:
    cfg = composed(*overrides.split())
    config.check(cfg)  # as finished runs have it
    with pytest.raises(UserError) as refused:
        config.check_used(cfg)
    assert UNUSED[overrides] in str(refused.value)


@pytest.mark.parametrize("overrides", USED)
def test_a_key_with_an_effect_is_not(overrides) -> None:
    config.check_used(composed(*overrides.split()))


@pytest.mark.slow
def test_every_choice_of_conf_goes_without_a_key_that_has_no_effect() -> None:
    for group in ("adapter", "backbone", "trainer", "experiment"):
        for path in sorted((CONF / group).glob("*.yaml")):
            config.check_used(composed(f"{group}={path.stem}"))
    for family in FAMILIES.values():
        for source in family.sources:
            config.check_used(composed(f"backbone={family.name}", f"dataset={source}", "++dataset.path=null"))


def test_the_table_of_keys_names_keys_that_exist() -> None:
    base = composed()
    for family in FAMILIES.values():
        for condition, keys in family.uses.items():
            sources = (f"dataset={source}" for source in family.sources)
            assert condition in (
                *sources,
                "",
                *family.formats,
                "own data",
                "bundled data",
                "own backbone",
                "pretrained",
                "text encoder",
            )
            assert all(OmegaConf.select(base, key, default="none") != "none" for key in keys)
