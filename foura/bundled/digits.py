"""Digits to adapt the bundled ViT to: real handwritten ones, which ship with scikit-learn (no download)."""

from __future__ import annotations

import numpy as np


def load_digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits as 16 x 16 grey images.

    Returns:
        images: uint8 of shape (1797, 16, 16), 0 is paper and 255 is full ink. The stored 8x8 ink counts
            (0..16) are scaled to 0..255 and upsampled bilinearly, as the last step of `glyphs.render_glyphs` does.
        labels: int64 of shape (1797,), the digit 0..9.

    Raises:
        ImportError: scikit-learn or torch is not installed.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return upsample_ink_counts(bunch.images), bunch.target.astype(np.int64)


def upsample_ink_counts(counts: np.ndarray) -> np.ndarray:
    """Scale 8x8 ink counts, float (count, 8, 8) in 0..16, to uint8 (count, 16, 16) in 0..255, bilinearly.

    Glyphs and digits both pass through this function, so that no difference between them comes from resizing.
    """
    import torch
    from torch.nn import functional

    ink = torch.as_tensor(counts, dtype=torch.float32).unsqueeze(1) * (255.0 / 16.0)
    ink = functional.interpolate(ink, size=(16, 16), mode="bilinear", align_corners=False)
    return ink.squeeze(1).round().clamp(0, 255).to(torch.uint8).numpy()
