"""Diversity and memorisation of generated images, from features (n, d) of any extractor."""

import torch
from torch import Tensor


def diversity(features: Tensor, prompt: Tensor) -> float:
    """Mean Euclidean distance between two images of one prompt, averaged over prompts.

    The paper's LPIPS diversity (App. D), with the distance in any feature space.

    Args:
        features: (n, d).
        prompt: (n,), the index of the prompt of each image; every prompt at least twice.

    Raises:
        ValueError: a prompt with one image.
    """
    means = []
    for one in prompt.unique():
        rows = features[prompt == one]
        if len(rows) < 2:
            raise ValueError("diversity needs at least two images of each prompt")
        means.append(torch.pdist(rows.double()).mean())
    return float(torch.stack(means).mean())


def copy_distance(generated: Tensor, training: Tensor, held_out: Tensor) -> float:
    """Mean distance of generated images to the nearest training image, divided by the same of held-out images.

    1: as far from the training set as real images outside it; 0: copies of training images.

    Args:
        generated, training, held_out: features (n, d) of each set.
    """
    own = torch.cdist(generated.double(), training.double()).amin(1).mean()
    return float(own / torch.cdist(held_out.double(), training.double()).amin(1).mean())
