"""Generated pictures as numbers: distance to real ones, diversity, copying. Features (n, d) of any extractor."""

import torch
from torch import Tensor


def diversity(features: Tensor, prompt: Tensor) -> float:
    """Mean distance between two pictures of one prompt, over prompts (the paper's LPIPS diversity, with any features).

    Args:
        features: (n, d). prompt: (n,), which prompt each belongs to; every prompt at least twice.
    """
    means = []
    for one in prompt.unique():
        rows = features[prompt == one]
        if len(rows) < 2:
            raise ValueError("diversity needs at least two pictures of each prompt")
        means.append(torch.pdist(rows.double()).mean())
    return float(torch.stack(means).mean())


def copy_distance(made: Tensor, training: Tensor, held_out: Tensor) -> float:
    """How far generated pictures keep from the training set, as real held-out ones do: mean distance to the nearest
    training picture, over the same of the held-out pictures. 1 is as a new picture would be; 0 is a copy.
    """
    own = torch.cdist(made.double(), training.double()).amin(1).mean()
    return float(own / torch.cdist(held_out.double(), training.double()).amin(1).mean())
