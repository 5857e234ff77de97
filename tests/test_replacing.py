"""A file or folder that is written appears when it is whole."""

import pytest

from wsigen.system.replacing import written_whole


def test_a_file_is_replaced_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    left = tmp_path / "data.partial"
    (left / "of-a-killed-run").mkdir(parents=True)
    with written_whole(tmp_path / "data") as partial:
        (partial / "images").mkdir(parents=True)
        assert not (tmp_path / "data").exists()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["images"]
    assert not left.exists()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_nothing_is_left_of_what_fails(tmp_path, error, kind):
    with pytest.raises(error), written_whole(tmp_path / "out") as partial:
        if kind == "file":
            partial.write_text("half")
        else:
            partial.mkdir()
            (partial / "half").touch()
        raise error
    assert not list(tmp_path.iterdir())
