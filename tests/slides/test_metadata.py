import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsigen.errors import SlideError
from wsigen.slides.label import LABEL_SIDE, draw_label, draw_macro, text_bitmap
from wsigen.slides.metadata import RESERVED, SlideMetadata, aperio_description, parse_description

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(TEXT.filter(lambda key: key not in (*RESERVED, "version")), TEXT), st.floats(0.01, 10))
def test_description_is_ascii_and_reads_back(provenance, mpp):
    metadata = SlideMetadata(round(mpp, 6), 40, {"version": "1.2.3", **provenance})
    description = aperio_description(metadata, 10, 20, 256, 90)
    assert description.isascii()
    assert "\0" not in description
    assert parse_description(description) == metadata


@pytest.mark.parametrize(
    "text", ["", "Aperio Image Library v11\r\n10x10|AppMag = 20|MPP = 0.5", "a|synthetic = wsigen 1|MPP"]
)
def test_other_descriptions_are_not_taken_for_ours(text):
    assert parse_description(text) is None


@pytest.mark.parametrize(
    "options", [(0, 20), (-1, 20), (math.nan, 20), (0.5, 0), (0.5, 20, {"MPP": "1"}), (0.5, 20, {" ": "1"})]
)
def test_metadata_out_of_range(options):
    with pytest.raises(SlideError):
        SlideMetadata(*options)


def test_letters_are_seven_high_six_apart_and_distinct():
    assert text_bitmap("ab").shape == (7, 11)
    assert text_bitmap("I").astype(int).sum(axis=0).tolist() == [0, 2, 7, 2, 0]
    shapes = {text_bitmap(c).tobytes() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:-_/+=()#%@*'? "}
    assert len(shapes) == 53
    assert (text_bitmap("é") == text_bitmap("?")).all()


def test_label_shows_what_differs_and_takes_long_names():
    def label(**provenance):
        return draw_label(SlideMetadata(0.5, 20, provenance), 1000, 2000)

    assert label().shape == (LABEL_SIDE, LABEL_SIDE, 3)
    assert (label(seed="1") != label(seed="2")).any()
    assert (label(model="x" * 500) != label()).any()
    assert (label(model="x" * 500)[:, -12:] == label()[:, -12:]).all()


def test_macro_has_the_label_at_the_left_and_the_slide_on_the_glass():
    label = draw_label(SlideMetadata(0.5, 20), 10, 10)
    macro = draw_macro(label, np.full((200, 300, 3), (200, 0, 100), np.uint8))
    assert macro.shape == (432, 1280, 3)
    assert (macro[10:-10, 10:400] == label[10:-10, 10:400]).all()
    assert (macro == (200, 0, 100)).all(-1).sum() == 200 * 300
