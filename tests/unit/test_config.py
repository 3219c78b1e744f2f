"""What may be set, and what is said when it may not; the promises of conf/ that no single run would show broken."""

import dataclasses
import importlib.util
import inspect

import pytest
from omegaconf import OmegaConf

from foura import config, schema
from foura.adapter.gates import GATE_SCOPES, GATES
from foura.adapter.transforms import TRANSFORMS
from foura.errors import UserError
from tests.helpers.config import CONF, composed


def choices(schema: type, name: str) -> tuple[str, ...]:
    return next(spec.metadata["choices"]() for spec in dataclasses.fields(schema) if spec.name == name)


def test_the_light_schema_says_what_the_adapter_says() -> None:
    assert choices(schema.AdapterConfig, "transform") == tuple(TRANSFORMS)
    assert choices(schema.AdapterConfig, "gate") == tuple(GATES)
    assert choices(schema.AdapterConfig, "gate_scope") == GATE_SCOPES


def test_trainer_keys_are_lightnings() -> None:
    from pytorch_lightning import Trainer

    known = set(inspect.signature(Trainer.__init__).parameters)
    assert {spec.name for spec in dataclasses.fields(schema.TrainerConfig)} <= known


@pytest.mark.parametrize("adapter", [path.stem for path in (CONF / "adapter").glob("*.yaml")])
def test_every_adapter_is_a_sound_config_with_its_own_name(adapter) -> None:
    cfg = composed(f"adapter={adapter}")
    config.check(cfg)
    assert cfg.adapter.name == adapter


def test_the_contracts_adapters_are_there() -> None:
    wanted = "lora foura foura_dct foura_dft foura_dct_gated foura_dft_gated foura_dct_frozen foura_random lora_gated"
    ours = "foura_random_gated"
    peers = "dora adalora sora vera fourierft full head"
    assert {path.stem for path in (CONF / "adapter").glob("*.yaml")} == {*wanted.split(), *peers.split(), ours}


def test_every_yaml_opens_with_its_command() -> None:
    for path in CONF.rglob("*.yaml"):
        said = path.read_text().removeprefix("# @package _global_\n")  # Hydra wants this first
        assert said.startswith("# python train.py"), path


def test_the_key_is_of_the_science_alone() -> None:
    base = config.run_key(composed())
    assert config.run_key(composed("sweep=a", "outputs=elsewhere", "trainer.enable_progress_bar=false")) == base
    others = [config.run_key(composed(change)) for change in ("rank=4", "seed=1", "adapter=lora", "optimizer.lr=0.1")]
    assert len({base, *others}) == 5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rank=0", "rank must be at least 1, got 0"),
        ("alpha=-1", "alpha must be above 0"),
        ("alpha=nan", "alpha must be above 0"),
        ("adapter.dropout=1.0", "adapter.dropout must be at least 0 and below 1"),
        ("adapter.transform=dctt", "Did you mean dct"),
        ("adapter.gate=open", "Valid choices: none, adaptive, frozen"),
        ("trainer.accelerator=gpuu", "Did you mean gpu"),
        ("dataset.val_fraction=1.5", "dataset.val_fraction must be above 0 and below 1"),
        ("optimizer.lr=0", "optimizer.lr must be above 0"),
        ("sweep=../x", "sweep='../x'"),
        ("+adapter.rnk=3", "adapter.rnk is not a key of adapter"),
        ("+nonsense=3", "nonsense is not a key"),
        ("dataset=imagefolder", "dataset.path is not set"),
    ],
)
def test_a_value_out_of_range_is_said_in_a_sentence(override, said) -> None:
    with pytest.raises(UserError) as refused:
        config.check(composed(override))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("launcher", "extra"), [("ray", "ray"), ("submitit_local", "slurm"), ("submitit_slurm", "slurm")]
)
def test_a_launcher_that_is_not_installed_is_answered_with_its_extra(launcher, extra) -> None:
    hydra_says = (
        f"Could not find 'hydra/launcher/{launcher}'\n\nAvailable options in 'hydra/launcher':\n\tbasic\n\tjoblib\n"
    )
    said = config.explain(ValueError(hydra_says))
    assert said == f"hydra/launcher={launcher} needs a package that is not installed: pip install 'foura[{extra}]'."


def test_a_cancelled_job_is_said_in_a_sentence() -> None:
    path = "/s/.submitit/4_1/4_1_0_result.pkl"
    submitit_says = (
        f"Job 4_1 (task: 0) with path {path}\nhas not produced any output (state: CANCELLED)\nError stream produced:"
    )
    said = config.explain(RuntimeError(submitit_says))
    assert said.startswith("job 4_1 ended before its run did (state: CANCELLED; what it said: /s/.submitit/4_1).")
    assert said.endswith("the same command goes on with what is missing.") and "\n" not in said


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="it is installed")
def test_ray_without_its_extra_is_refused_in_one_sentence(train) -> None:
    refused = train("-m", "hydra/launcher=ray", "sweep=s", "adapter=head")
    assert refused.code == "error: hydra/launcher=ray needs a package that is not installed: pip install 'foura[ray]'."


def test_folders_are_the_same_for_the_same_overrides_and_safe_for_all() -> None:
    assert config.folder_name("adapter=lora,rank=4") == "adapter=lora,rank=4"
    assert config.folder_name("") == "default"
    long = config.folder_name("dataset.path=/a/b/../c" + "x" * 300)
    assert "/" not in long
    assert len(long) <= 120
    assert config.folder_name("dataset.path=/a b") != config.folder_name("dataset.path=/a_b")


def test_scientific_is_flat_and_resolved() -> None:
    flat = config.scientific(composed("adapter=lora"))
    assert flat["optimizer.lr"] == flat["adapter.lr"] == 1e-3
    assert not any(OmegaConf.is_config(value) for value in flat.values())
