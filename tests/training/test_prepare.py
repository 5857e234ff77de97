"""What a training folder promises, on tiny data sets written in the published layouts."""

import builtins
import json

import numpy as np
import pytest
import pyvips
from click.testing import CliRunner
from PIL import Image

from wsigen.cli.main import main
from wsigen.errors import DataError
from wsigen.training.data import manifest as folder_format
from wsigen.training.data.instances import rebuild_instances
from wsigen.training.data.summary import available_windows, summarise
from wsigen.training.prepare import prepare

CLASSES = [{"index": i, "name": f"class {i}", "colour": "#102030"} for i in range(1, 7)]


def disc(labels, x, y, radius, value):
    rows, columns = np.indices(labels.shape)
    labels[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = value


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pyvips.Image.new_from_array(np.ascontiguousarray(array))
    if array.dtype == np.uint16:
        image = image.copy(interpretation="grey16")
    image.write_to_file(str(path), **options)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def lizard(tmp_path):
    folder = tmp_path / "lizard"
    for seed, name in enumerate(("crag_6", "crag_8", "consep_8")):
        labels = np.zeros((96, 160), np.uint8)
        disc(labels, 40, 40, 8, 2)
        disc(labels, 53, 40, 8, 2)
        disc(labels, 80, 60, 5, 3)
        labels[:, 140:] = 255
        write(folder / "images" / f"{name}.webp", noise(96, 160, seed), lossless=True)
        write(folder / "labels" / f"{name}.png", labels)
    return folder


@pytest.fixture
def consep(tmp_path):
    """One source image of 1000 px, cut as CoNSeP's published patches are."""
    folder = tmp_path / "consep"
    columns = np.linspace(0, 255, 1000).astype(np.uint8)
    rgb = np.stack([np.tile(columns, (1000, 1)), np.tile(columns[:, None], (1, 1000)), np.full((1000, 1000), 90)], 2)
    ids = np.zeros((1000, 1000), np.uint16)
    centres = [(x, y) for y in range(20, 1000, 40) for x in range(20, 1000, 40)]
    for index, (x, y) in enumerate(centres, 1):
        ids[y - 9 : y + 9, x - 9 : x + 9] = index
    origins = [(256 * i, 256 * j) for j in range(3) for i in range(3)]
    origins += [(256 * i, 744) for i in range(3)] + [(744, 256 * i) for i in range(3)] + [(744, 744)]
    types = {}
    for index, (x, y) in enumerate(origins):
        name = f"test_10_{index:03d}"
        window = (slice(y, y + 256), slice(x, x + 256))
        write(folder / "images" / f"{name}.jpg", rgb[window].astype(np.uint8), Q=95)
        write(folder / "instances" / f"{name}.png", ids[window])
        types[name] = {str(i): int(i) % 4 + 1 for i in np.unique(ids[window]) if i}
    (folder / "types.json").write_text(json.dumps(types))
    return folder, rgb, ids


def test_a_training_folder_reads_back_pixel_for_pixel(tmp_path, lizard):
    out = tmp_path / "out"
    written = prepare({"lizard": lizard}, out, classes=CLASSES)
    assert folder_format.load(out) == written
    assert [image.name for image in written.images] == ["lizard_consep_8", "lizard_crag_6", "lizard_crag_8"]
    labels = folder_format.read_label(folder_format.label_path(out, "lizard_crag_6"))
    rgb = folder_format.read_rgb(folder_format.image_path(out, "lizard_crag_6"))
    assert np.array_equal(labels, folder_format.read_label(lizard / "labels" / "crag_6.png"))
    assert np.array_equal(rgb[:, :140], noise(96, 160, 0)[:, :140])
    assert not rgb[:, 140:].any()


def test_touching_nuclei_get_ids_of_their_own(tmp_path, lizard):
    prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    ids = folder_format.read_label(folder_format.instance_path(tmp_path / "out", "lizard_crag_6"))
    assert ids.dtype == np.uint16
    assert ids.max() == 3
    assert len({ids[40, 36], ids[40, 57], ids[60, 80]}) == 3
    assert ids[0, 0] == 0 and not ids[:, 140:].any()


def test_a_long_nucleus_stays_whole():
    labels = np.zeros((40, 80), np.uint8)
    rows, columns = np.indices(labels.shape)
    labels[((columns - 40) / 30) ** 2 + ((rows - 20) / 6) ** 2 <= 1] = 6
    assert rebuild_instances(labels, 6).max() == 1


def test_neighbours_of_two_classes_are_two_nuclei():
    labels = np.zeros((20, 20), np.uint8)
    labels[5:10, 5:10], labels[5:10, 10:15] = 2, 3
    ids = rebuild_instances(labels, 6)
    assert ids.max() == 2 and ids[6, 6] != ids[6, 12]


def test_consep_patches_are_put_together_and_halved(tmp_path, consep):
    folder, rgb, ids = consep
    found = prepare({"consep": folder}, tmp_path / "out", classes=CLASSES)
    (image,) = found.images
    assert (image.group, image.width, image.height) == ("test_10", 500, 500)
    got = folder_format.read_label(folder_format.instance_path(tmp_path / "out", image.name))
    assert np.array_equal(got, ids[1::2, 1::2])
    labels = folder_format.read_label(folder_format.label_path(tmp_path / "out", image.name))
    assert np.array_equal(labels > 0, got > 0)
    types = got[got > 0] % 4 + 1
    assert np.array_equal(labels[got > 0], np.array([0, 6, 3, 2, 6])[types])
    mean = rgb.reshape(500, 2, 500, 2, 3).mean((1, 3))
    picture = folder_format.read_rgb(folder_format.image_path(tmp_path / "out", image.name))
    assert np.abs(picture - mean).mean() < 3


def test_one_tissue_in_two_sets_stays_on_one_side(tmp_path, lizard, consep):
    found = prepare({"lizard": lizard, "consep": consep[0]}, tmp_path / "out", holdout=["test_10"], classes=CLASSES)
    assert {image.name for image in found.of_split("val")} == {"lizard_consep_8", "consep_test_10"}
    assert {image.group for image in found.of_split("val")} == {"test_10"}


def test_default_split_holds_out_named_images(tmp_path, lizard):
    found = prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    assert [image.name for image in found.of_split("val")] == ["lizard_crag_6"]


def test_crchisto_labels_are_marked_as_machine_made(tmp_path):
    labels = np.zeros((50, 60), np.uint8)
    disc(labels, 20, 20, 6, 2)
    write(tmp_path / "crc" / "images" / "img5.webp", noise(50, 60), lossless=True)
    write(tmp_path / "crc" / "pseudo_labels" / "img5.png", labels)
    (image,) = prepare({"crchisto": tmp_path / "crc"}, tmp_path / "out", classes=CLASSES).images
    assert (image.label_quality, image.split, image.width, image.height) == ("machine", "val", 60, 50)


def test_own_folder_keeps_its_instances_and_holds_out_every_tenth(tmp_path):
    own = tmp_path / "own"
    ids = np.zeros((32, 32), np.uint16)
    ids[4:10, 4:10], ids[20:30, 20:30] = 700, 40000
    for index in range(10):
        write(own / "images" / f"a{index}.png", noise(32, 32, index))
        write(own / "labels" / f"a{index}.png", (ids > 0).astype(np.uint8))
        write(own / "instances" / f"a{index}.png", ids)
    found = prepare({"folder": own}, tmp_path / "out", classes=CLASSES[:1])
    assert [image.group for image in found.of_split("val")] == ["a9"]
    got = folder_format.read_label(folder_format.instance_path(tmp_path / "out", "folder_a0"))
    assert np.array_equal(got, (ids == 700) + np.uint16(2) * (ids == 40000))


def test_the_same_input_gives_the_same_files(tmp_path, lizard):
    for name in ("a", "b"):
        prepare({"lizard": lizard}, tmp_path / name, classes=CLASSES)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_lossy_quality_is_set_by_layout(tmp_path, lizard):
    prepare({"lizard": lizard}, tmp_path / "a", classes=CLASSES)
    prepare({"lizard": lizard}, tmp_path / "b", classes=CLASSES, webp_quality={"lizard": 60})
    prepare({"lizard": lizard}, tmp_path / "c", classes=CLASSES, webp_quality={"consep": 60})
    a, b, c = (files_of(tmp_path / name) for name in "abc")
    assert a == c
    assert len(b["images/lizard_crag_6.webp"]) < len(a["images/lizard_crag_6.webp"])
    assert a["labels/lizard_crag_6.png"] == b["labels/lizard_crag_6.png"]


def test_a_failed_run_leaves_nothing_behind(tmp_path, lizard):
    write(lizard / "labels" / "crag_8.png", np.full((96, 160), 9, np.uint8))
    with pytest.raises(DataError, match=r"crag_8\.png: label 9"):
        prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["lizard"]


def test_a_folder_with_content_is_replaced_only_on_request(tmp_path, lizard):
    out = tmp_path / "out"
    prepare({"lizard": lizard}, out, classes=CLASSES)
    with pytest.raises(DataError, match="exists and is not empty"):
        prepare({"lizard": lizard}, out, classes=CLASSES)
    prepare({"lizard": lizard}, out, classes=CLASSES, overwrite=True)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="no training folder"):
        prepare({"lizard": lizard}, out, classes=CLASSES, overwrite=True)
    assert (out / "images").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mpp": 0.7}, "whole multiple"),
        ({"mpp": 0.25}, "whole multiple"),
        ({"holdout": ["crag_77"]}, "crag_77"),
        ({"webp_quality": 200}, "200"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, lizard, options, message):
    with pytest.raises(DataError, match=message) as caught:
        prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES, **options)
    assert "\n" not in str(caught.value)


def test_windows_count_only_where_all_pixels_are_available(tmp_path, lizard):
    labels = np.zeros((100, 164), np.uint8)
    labels[70, 5] = 255
    assert available_windows(labels, 64, 32).tolist() == [
        [0, 0],
        [32, 0],
        [64, 0],
        [96, 0],
        [32, 32],
        [64, 32],
        [96, 32],
    ]
    assert len(available_windows(labels, 128, 32)) == 0
    prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    train, val = summarise(tmp_path / "out", windows=(64,))
    assert (train.split, train.images, val.images, val.pixels) == ("train", 2, 1, 96 * 140)
    assert sum(val.class_pixels) == val.pixels and val.windows == {64: 6}


def test_both_libraries_read_the_same(tmp_path, lizard, monkeypatch):
    pytest.importorskip("PIL")
    prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    rgb = folder_format.image_path(tmp_path / "out", "lizard_crag_6")
    ids = folder_format.instance_path(tmp_path / "out", "lizard_crag_6")
    first = (folder_format.read_rgb(rgb), folder_format.read_label(ids))
    real = builtins.__import__

    def without_pyvips(name, *args, **kwargs):
        if name == "pyvips":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pyvips)
    second = (folder_format.read_rgb(rgb), folder_format.read_label(ids))
    for one, other in zip(first, second):
        assert one.dtype == other.dtype and np.array_equal(one, other)


def change(folder, edit):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data.update(version=7), "version is 7"),
        (lambda data: data["images"][0].pop("group"), "group"),
        (lambda data: data["images"][0].update(split="test"), "'test'"),
        (lambda data: data["images"][1].update(group="crag_8"), "in train and in val"),
        (lambda data: data["images"][0].update(name="gone"), "not found"),
        (lambda data: data["images"].append(data["images"][0]), "twice"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused_in_one_line(tmp_path, lizard, edit, message):
    prepare({"lizard": lizard}, tmp_path / "out", classes=CLASSES)
    change(tmp_path / "out", edit)
    with pytest.raises(DataError, match=message) as caught:
        folder_format.load(tmp_path / "out")
    assert "\n" not in str(caught.value)


# --- folders and files as users have them -----------------------------------------------------------------------------


def leave_droppings(folder):
    """What file browsers on macOS and Windows leave beside pictures."""
    for name in (".DS_Store", "._a.png", "._a.webp", "._a.jpg", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(b"\0\5\x16\7")


def own_folder(folder):
    labels = np.zeros((64, 64), np.uint8)
    disc(labels, 30, 30, 6, 2)
    write(folder / "images" / "a.png", noise(64, 64))
    write(folder / "labels" / "a.png", labels)
    return labels


def test_files_that_browsers_leave_in_folders_are_no_pictures(tmp_path, lizard):
    own_folder(tmp_path / "own")
    for folder in (tmp_path / "own", lizard):
        leave_droppings(folder / "images")
        leave_droppings(folder / "labels")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(b"")
    sources = [f"--source=folder={tmp_path / 'own'}", f"--source=lizard={lizard}"]
    result = CliRunner().invoke(main, ["data", "prepare", *sources, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert sorted(image.name for image in folder_format.load(tmp_path / "out").images) == [
        "folder_a", "lizard_consep_8", "lizard_crag_6", "lizard_crag_8"
    ]  # fmt: skip


def test_labels_of_a_palette_are_its_indices(tmp_path):
    labels = own_folder(tmp_path / "own")
    picture = Image.fromarray(labels, "P")
    picture.putpalette(list(range(255, -1, -1)) * 3)
    picture.save(tmp_path / "own" / "labels" / "a.png")
    prepare({"folder": tmp_path / "own"}, tmp_path / "out")
    written = folder_format.read_label(folder_format.label_path(tmp_path / "out", "folder_a"))
    assert np.array_equal(written, labels)


@pytest.mark.parametrize("types", ["[1, 2]", '{"a": 3}', '{"a": {"x": 1}}', '{"a": {"1": [2]}}', '{"a": {"99999": 1}}'])
def test_types_of_consep_with_a_fault_are_one_line(types, consep, tmp_path):
    folder, *_ = consep
    name = next(path.stem for path in sorted((folder / "images").iterdir()))
    (folder / "types.json").write_text(types.replace('"a"', f'"{name}"'))
    result = CliRunner().invoke(main, ["data", "prepare", f"--source=consep={folder}", "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and "types.json" in result.output and not (tmp_path / "out").exists()


def test_a_byte_order_mark_in_a_list_of_types_is_no_content(consep, tmp_path):
    folder, *_ = consep
    text = (folder / "types.json").read_text()
    (folder / "types.json").write_bytes(text.encode("utf-8-sig"))
    assert prepare({"consep": folder}, tmp_path / "out").images
