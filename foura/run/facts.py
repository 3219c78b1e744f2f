"""The facts of a run in one line: the sizes of its splits, chance, and the backbone with its pretraining."""

from omegaconf import DictConfig

from foura.data.run_data import RunData
from foura.families import family_of

UNEQUAL = 0.05  # how far above chance the commonest class is worth a word


def facts(cfg: DictConfig, data: RunData) -> str:
    """As in "train 120 · validation 40 · test 40, 10 classes (chance 0.10) · backbone: bundled ViT, pretrained on …".

    Chance is the accuracy of guessing among the classes at random. Where classes are so unequal that always giving the
    commonest one does better, that accuracy is named as well: "2 classes (chance 0.50, always the commonest 0.70)".
    """
    sizes, classes = " · ".join(f"{name} {size:,}" for name, size in data.sizes.items()), classes_of(cfg, data)
    named = f", {classes} classes ({_guessed(1 / classes, data.commonest)})" if classes else ""
    return f"{sizes}{named} · split seed {cfg.dataset.split_seed} · backbone: {pretraining(cfg)}"


def _guessed(chance: float, commonest: float | None) -> str:
    """The accuracies that need no model, in words."""
    unequal = commonest is not None and commonest > chance + UNEQUAL
    return f"chance {chance:.2f}" + (f", always the commonest {commonest:.2f}" if unequal else "")


def classes_of(cfg: DictConfig, data: RunData) -> int:
    """The number of classes that the data has; 0 where it has none."""
    if family_of(cfg).format(cfg.dataset.format) == "verbalizer":
        return len(cfg.dataset.verbalizer)
    return len(data.classes or ())


def pretraining(cfg: DictConfig) -> str:
    """The backbone, and what its weights were trained on before, as far as it is known."""
    family, backbone = family_of(cfg), cfg.backbone
    bundled = backbone.name == "embedded"
    name = family.bundled_model if bundled else str(backbone.name)
    if backbone.pretrained is False:
        return f"{name}, with random weights (backbone.pretrained=false)"
    if isinstance(backbone.pretrained, str):
        return f"{name}, weights of {backbone.pretrained}"
    return f"{name}, pretrained on {family.bundled_on}" if bundled else f"{name}, with its pretrained weights"
