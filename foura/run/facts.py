"""The facts of a run in one line: the sizes of its splits, chance, and the backbone with its pretraining."""

from omegaconf import DictConfig

from foura.data.run_data import RunData
from foura.families import family_of


def facts(cfg: DictConfig, data: RunData) -> str:
    """As in "train 120 · validation 40 · test 40, 10 classes (chance 0.10) · backbone: bundled ViT, pretrained on …".

    Chance is the accuracy of guessing among the classes at random.
    """
    sizes, classes = " · ".join(f"{name} {size:,}" for name, size in data.sizes.items()), classes_of(cfg, data)
    named = f", {classes} classes (chance {1 / classes:.2f})" if classes else ""
    return f"{sizes}{named} · split seed {cfg.dataset.split_seed} · backbone: {pretraining(cfg)}"


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
