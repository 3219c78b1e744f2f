"""The rendered letters: their styles, and one image per seed."""

import numpy as np
import pytest

from foura.bundled.letters import LETTERS, caption, render_letters


def test_letters_have_a_style_and_are_the_same_for_a_seed() -> None:
    plain, captions = render_letters(26, 3, "plain")
    fire, _ = render_letters(26, 3, "fire")
    assert plain.shape == (26, 16, 16, 3) and plain.dtype == np.uint8
    assert captions == [caption(letter) for letter in LETTERS]
    assert (render_letters(26, 3, "plain")[0] == plain).all()
    assert fire[..., 0].mean() > 2 * fire[..., 2].mean()  # fire is red and yellow, on black
    ice, _ = render_letters(26, 3, "ice")
    assert ice[..., 2].mean() > ice[..., 0].mean() > 128  # ice is blue, on white
    with pytest.raises(ValueError, match="choose one of plain, fire, ice"):
        render_letters(1, 0, "water")
