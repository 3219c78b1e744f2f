"""The families of backbones, one folder each, and their registry `FAMILIES`: a family is one entry."""

from omegaconf import DictConfig

from foura.families import diffusion, encoder, images, language
from foura.families.family import Family, Parts

_LISTED = (images.FAMILY, language.FAMILY, diffusion.FAMILY, encoder.FAMILY)
FAMILIES: dict[str, Family] = {family.name: family for family in _LISTED}


def family_of(cfg: DictConfig) -> Family:
    """The family of a run's config."""
    return FAMILIES[cfg.backbone.family]


def build(cfg: DictConfig) -> Parts:
    """Data, backbone and task of a run's config.

    Raises:
        UserError: something in them that cannot work.
    """
    return family_of(cfg).build(cfg)
