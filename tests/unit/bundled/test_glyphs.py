"""The glyphs of the bundled ViT's pretraining: the same for a seed, and drawn only where they are needed."""

import hashlib

from foura.bundled import glyphs


def test_a_seed_gives_the_same_glyphs_whatever_was_drawn_before() -> None:
    glyphs._distance_field.cache_clear()
    images, labels = glyphs.render_glyphs(40, seed=7)
    assert 0 < glyphs._distance_field.cache_info().currsize <= 40  # of about 1,800 of all fonts
    other, _ = glyphs.render_glyphs(40, seed=8)
    again, labels_again = glyphs.render_glyphs(40, seed=7)
    assert (again == images).all() and (labels_again == labels).all() and (other != images).any()


def test_a_class_is_drawn_from_the_fonts_that_have_it() -> None:
    listed, first, variants = glyphs._glyphs()
    assert len(first) == len(variants) == len(glyphs.GLYPH_CLASSES) and int(first[-1] + variants[-1]) == len(listed)
    for place, characters in enumerate(glyphs.GLYPH_CLASSES):
        of_class = listed[first[place] : first[place] + variants[place]]
        assert {character for _, character in of_class} == set(characters)
    digests = [hashlib.sha256(field.tobytes()).digest() for field in glyphs.fields_of("A")]
    assert len(digests) > 10 and len(set(digests)) == len(digests)
