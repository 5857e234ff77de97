"""Values that several modules name stand in one place; the tables that do the work have exactly these keys."""

from wsigen_kernels.dispatch import ATTENTION_BACKENDS, NORM_BACKENDS

from wsigen import choices
from wsigen.dataset.layouts import LAYOUTS
from wsigen.masks.exporters.exporting import FORMATS as LABEL_TABLE
from wsigen.rendering.plan import LABEL_ENDINGS
from wsigen.slides.formats import FORMATS as SLIDE_TABLE
from wsigen.system.devices import DTYPES
from wsigen.training.data.formats import DATA_SETS


def test_tables_hold_the_values_that_the_command_line_offers():
    assert tuple(DTYPES) == choices.DTYPES
    assert tuple(SLIDE_TABLE) == choices.SLIDE_FORMATS
    assert tuple(LABEL_TABLE) == tuple(LABEL_ENDINGS) == choices.LABEL_FORMATS
    assert tuple(DATA_SETS) == choices.TRAINING_DATA_SETS
    assert tuple(LAYOUTS) == choices.DATASET_LAYOUTS
    assert set(ATTENTION_BACKENDS) == set(choices.ATTENTION_BACK_ENDS)
    assert set(NORM_BACKENDS) == set(choices.NORM_BACK_ENDS)
