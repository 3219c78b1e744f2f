"""What a frozen model could do before, and how much of it is left: its loss on the data it was pretrained on."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from foura.errors import UserError
from foura.files import read_weights

ITEMS = 512  # glyphs, or letters over noise levels; blocks of text are an eighth of it


def check_drift(cfg: DictConfig) -> None:
    """Raises UserError where the pretraining data is not known."""
    if cfg.backbone.name != "embedded" or cfg.backbone.pretrained is not True:
        raise UserError(
            "evaluation.drift=true needs the data that the backbone was pretrained on, which is known of the embedded "
            "backbones alone; leave it out."
        )


@torch.no_grad()
def own_loss(family: str, parts: Any, model: nn.Module, cfg: DictConfig) -> float:
    """Loss of a (possibly adapted) embedded backbone on its pretraining data, in the task's own unit."""
    training = model.training
    model.eval()
    try:
        if family == "vit":
            return _glyphs(model)
        task = parts.task(model)
        for batch in _text(parts) if family == "llama_small" else _letters(parts):
            task.evaluate("test", batch)
        return task.results("test")["loss"]
    finally:
        model.train(training)


def _glyphs(model: Any) -> float:
    """Cross-entropy of the head that the ViT was pretrained with, on features of today."""
    from foura.bundled.glyphs import render_glyphs
    from foura.bundled.vit import INPUT_MEAN, INPUT_STD, WEIGHTS

    pixels, labels = render_glyphs(ITEMS, seed=10_000_019)
    images = (torch.from_numpy(pixels).unsqueeze(1).float() / 255 - INPUT_MEAN[0]) / INPUT_STD[0]
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    head = read_weights(WEIGHTS)
    logits = nn.functional.linear(features, head["head.weight"].float(), head["head.bias"].float())
    return float(nn.functional.cross_entropy(logits, torch.from_numpy(labels)))


def _text(parts: Any) -> list[Any]:
    from pydoc_data.topics import topics

    from foura.families.language.data import Tokens

    ids = [token for name in sorted(topics) for token in parts.backbone.tokenizer(topics[name])["input_ids"]]
    blocks = torch.tensor(ids[: ITEMS // 8 * 128]).view(-1, 128)
    items = [Tokens(block, block, len(parts.backbone.tokenizer.decode(block.tolist()).encode())) for block in blocks]
    return [parts.data.collate(items[start : start + 32]) for start in range(0, len(items), 32)]


def _letters(parts: Any) -> list[Any]:
    from foura.bundled.letters import render_letters

    pixels, captions = render_letters(ITEMS // 4, seed=10_000_019, style="plain")
    pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return [(parts.backbone.encode(pictures), parts.backbone.tokenize(captions), torch.arange(len(pictures)))]
