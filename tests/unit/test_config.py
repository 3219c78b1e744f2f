"""Keys of a config: what may be set, the sentences for what may not, and the key that identifies an experiment."""

import dataclasses
import importlib.util
import inspect
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from foura import config, mistakes, schema
from foura.adapter.gate import GATE_SCOPES
from foura.adapter.gate_forms import GATE_FORMS
from foura.adapter.gates import GATES
from foura.adapter.transforms import TRANSFORMS
from foura.errors import UserError
from tests.helpers.config import CONF, composed

CHOICES = """
import dataclasses, sys
from foura.schema import AdapterConfig
for spec in dataclasses.fields(AdapterConfig):
    if spec.name in ("transform", "gate", "gate_scope", "gate_form"):
        print(*spec.metadata["choices"]())
assert "torch" not in sys.modules
"""


def test_the_light_schema_has_the_choices_of_the_adapter(run_env) -> None:
    command = [sys.executable, "-c", CHOICES]
    said = subprocess.run(command, env=run_env, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split() for line in said] == [list(TRANSFORMS), list(GATES), list(GATE_SCOPES), list(GATE_FORMS)]


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
    peers = "dora adalora sora vera fourierft full head rslora pissa olora oft c3a waveft hira shira miss randlora loha lokr"
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


# computed by version 0.1.0 (commit 648038c): the same experiments must be found again by every later version; gates were of
# the entropy form then
KEYS = {
    "adapter.gate_form=entropy": "b0f10cee4d0b6a5d",
    "adapter=lora rank=64 seed=2": "74c64dae664afa10",
    "backbone=llama_small adapter=foura_dft": "03569e5efa4f67d7",
    "backbone=unet adapter=foura_dct_frozen adapter.gate_form=entropy trainer=gpu "
    "trainer.precision=bf16-mixed": "6cd43b95c79f6590",
    "adapter=sora iso_parameters=true select=acc dataset.label_noise=0.2": "84106f03eed19e05",
    "backbone=llama_small adapter=adalora dataset=jsonl dataset.path=/data/x.jsonl dataset.format=completion "
    "dataset.columns.text=body": "18bad6045a4345cc",
    "dataset=imagefolder dataset.path=/data/pictures dataset.classes=[a,b] adapter=lora "
    "+adapter.options.init_lora_weights=pissa trainer=ddp": "e2f9596e74d499f8",
    "experiment=overfitting adapter.gate_form=entropy": "3f45eb4918f38888",
}


@pytest.mark.parametrize("overrides", KEYS)
def test_an_experiment_has_the_key_that_it_had_in_0_1_0(overrides) -> None:
    assert config.run_key(composed(*overrides.split())) == KEYS[overrides]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("""dataset.verbalizer=[" bad"," good"]""", [" bad", " good"]),
        ("""dataset.verbalizer='[" bad"," good"]'""", [" bad", " good"]),
        ("""dataset.verbalizer="[' bad', ' good']" """.strip(), [" bad", " good"]),
        ("dataset.verbalizer='[no,yes]'", ["no", "yes"]),
        ("dataset.verbalizer=[0,1]", ["0", "1"]),
        ("dataset.classes='[3, b]'", ["3", "b"]),
        ("evaluation.strengths='[1,0.5]'", [1.0, 0.5]),
        ("backbone.target_modules='[qkv]'", ["qkv"]),
    ],
)
def test_a_list_can_be_given_as_a_quoted_text(given, wanted) -> None:
    cfg = composed(given)
    config.check(cfg)
    found = OmegaConf.select(cfg, given.partition("=")[0])
    assert list(found) == wanted and [type(item) for item in found] == [type(item) for item in wanted]
    plain = composed(f"{given.partition('=')[0]}={[*wanted]}")
    config.check(plain)
    assert config.run_key(cfg) == config.run_key(plain)


@pytest.mark.parametrize(
    "given", ["dataset.verbalizer=bad", "dataset.classes=5", "dataset.classes='[[a]]'", "evaluation.strengths=[a]"]
)
def test_what_is_not_a_list_is_said_in_a_sentence(given) -> None:
    with pytest.raises(UserError, match=given.partition("=")[0].replace(".", r"\.") + "=.* is not a list of"):
        config.check(composed(given))


@dataclasses.dataclass
class Section:
    old: int = 1
    new: str | None = schema.since("0.2.0", None)
    chosen: str = schema.since("0.2.0", schema._choice("a", "a", "b"))
    table: dict[str, int] = schema.since("0.2.0", dataclasses.field(default_factory=lambda: {"x": 1}))  # noqa: RUF009


@dataclasses.dataclass
class Later:
    section: Section = dataclasses.field(default_factory=Section)
    rank: int = 3
    late: float = schema.since("0.3.0", schema._number(2.0, at_least=0.0))


def test_a_key_that_was_added_later_enters_where_it_is_not_at_its_default(monkeypatch) -> None:
    before = config.run_key(OmegaConf.create({"section": {"old": 1}, "rank": 3}))
    monkeypatch.setattr(config, "Config", Later)
    assert config.run_key(OmegaConf.structured(Later)) == before
    assert config.scientific(OmegaConf.structured(Later))["section.chosen"] == "a"  # MLflow gets all keys
    changes = ("section.new=x", "section.chosen=b", "section.table={x: 2}", "section.table={y: 1}", "late=1", "rank=4")
    changed = [OmegaConf.merge(OmegaConf.structured(Later), OmegaConf.from_dotlist([change])) for change in changes]
    assert len({before, *map(config.run_key, changed)}) == 1 + len(changes)
    with pytest.raises(UserError, match="late must be at least 0"):
        config._check_node(OmegaConf.structured(Later(late=-1.0)), Later, "")


def test_the_split_is_the_same_for_every_seed_or_drawn_with_it() -> None:
    assert [composed(f"seed={seed}").dataset.split_seed for seed in (0, 3)] == [0, 0]
    drawn = composed("seed=3", "dataset.split_seed=${seed}")
    config.check(drawn)
    assert drawn.dataset.split_seed == 3


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("adapter.options", "adapter.options is not set yet; a plus sign adds it: +adapter.options.NAME=VALUE."),
        ("adapter.options.x", "adapter.options.x is not set yet; a plus sign adds it: +adapter.options.NAME=VALUE."),
        ("adapter.rnk", "adapter.rnk is not a key of adapter. Valid choices: name, method"),
        ("dataset.colums.text", "dataset.colums.text is not a key of dataset. Did you mean columns?"),
        ("trainer.max_epoch", "trainer.max_epoch is not a key of trainer. Did you mean max_epochs?"),
        ("rnak", "rnak is not a key. Did you mean rank?"),
        ("lr", "lr is not a key. Did you mean adapter.lr, optimizer.lr?"),
        ("learning_rate", "learning_rate is not a key. Did you mean adapter.lr, optimizer.lr?"),
        ("trainer.lr", "trainer.lr is not a key of trainer. Did you mean adapter.lr, optimizer.lr?"),
        ("epochs", "epochs is not a key. Did you mean dataset.epochs, trainer.max_epochs, trainer.min_epochs?"),
        ("max_epochs", "max_epochs is not a key. Did you mean trainer.max_epochs?"),
        ("num_epochs", "num_epochs is not a key. Did you mean dataset.epochs, trainer.max_epochs"),
        ("batch_size", "batch_size is not a key. Did you mean dataset.batch_size, dataset.eval_batch_size?"),
        ("gate", "gate is not a key. Did you mean"),
    ],
)
def test_a_key_that_hydra_does_not_find_is_answered_with_those_there_are(key, said) -> None:
    assert mistakes.explain(ValueError(f"Could not override '{key}'.\nKey is not in struct")).startswith(said)


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
        ("~force", "leave ~force out"),
        ("~rank", "leave ~rank out"),
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
    said = mistakes.explain(ValueError(hydra_says))
    assert said == f"hydra/launcher={launcher} needs a package that is not installed: pip install 'foura[{extra}]'."


def test_a_cancelled_job_is_said_in_a_sentence() -> None:
    path = "/s/.submitit/4_1/4_1_0_result.pkl"
    submitit_says = (
        f"Job 4_1 (task: 0) with path {path}\nhas not produced any output (state: CANCELLED)\nError stream produced:"
    )
    said = mistakes.explain(RuntimeError(submitit_says))
    assert said.startswith("job 4_1 ended before its run did (state: CANCELLED; its output: /s/.submitit/4_1).")
    assert said.endswith("the same command resumes what is missing.") and "\n" not in said


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


@pytest.mark.parametrize(
    ("given", "works"),
    [
        ("dataset=hf dataset.path=x dataset.config=a", True),
        ("dataset=imagefolder dataset.path=x dataset.config=a", False),
        ("dataset=imagefolder dataset.path=x dataset.background=black dataset.unreadable=drop", True),
        ("dataset.background=black", False),
        ("dataset=imagefolder dataset.path=x dataset.splits={train:a}", True),
        ("backbone=llama_small dataset.too_long=drop", False),  # running text is cut into blocks anyway
        ("backbone=llama_small dataset=jsonl dataset.path=x dataset.format=completion dataset.too_long=drop", True),
        ("backbone=bert dataset.too_long=drop dataset.duplicates=drop", True),
        ("backbone=llama_small dataset=jsonl dataset.path=x dataset.unreadable=drop", False),
    ],
)
def test_keys_of_the_data_are_refused_where_they_have_no_effect(given, works) -> None:
    cfg = composed(*given.split())
    config.check(cfg)
    if works:
        config.check_used(cfg)
    else:
        with pytest.raises(UserError, match="has no effect"):
            config.check_used(cfg)
