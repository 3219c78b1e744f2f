"""Which files are data: not those that systems and programs leave in a folder."""

import os
import stat

import pytest

from foura.data.listing import data_files, data_folders, files_in, is_data
from foura.errors import UserError

LEFT = (
    *(".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found", "System Volume Information"),
    *("__pycache__", ".git", ".Trash-1000", "#recycle", "@Recycle", "RECYCLER", ".AppleDouble", "~snapshot", "cat.bak"),
)
FILES = ("._x.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg", "x.jpg~", "#x.jpg#", "~$x.jpg", "Icon\r")


@pytest.mark.parametrize("name", [*LEFT, *(name.upper() for name in LEFT)])
def test_folders_of_systems_and_programs_are_no_data(name, tmp_path) -> None:
    for folder in (tmp_path / name, tmp_path / "cat", tmp_path / "cat" / name):
        folder.mkdir()
        (folder / "1.jpg").touch()
    assert data_folders(tmp_path) == [tmp_path / "cat"]
    assert data_files(tmp_path, (".jpg",)) == [tmp_path / "cat" / "1.jpg"]


@pytest.mark.parametrize("name", FILES)
def test_files_of_systems_and_programs_are_no_data(name, tmp_path) -> None:
    (tmp_path / name).touch()
    (tmp_path / "X.JPG").touch()
    assert not is_data(name)
    for found in (data_files(tmp_path, ("",)), files_in(tmp_path, ("",))):
        assert [path.name for path in found] == ["X.JPG"]


@pytest.mark.parametrize("name", ["1.jpg", "__init__.py", "a~b.jpg", "$5 bill.jpg", "#1.jpg", "@me.jpg", "thumbs.jpg"])
def test_other_names_are_data(name) -> None:
    assert is_data(name)


def test_a_hidden_folder_that_is_named_itself_is_read(tmp_path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "1.jpg").touch()
    assert len(data_files(tmp_path / ".cache", (".jpg",))) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read all folders")
def test_a_folder_that_cannot_be_read_is_refused(tmp_path) -> None:
    (tmp_path / "cat").mkdir(mode=0)
    try:
        with pytest.raises(UserError, match="cat cannot be read"):
            data_files(tmp_path, (".jpg",))
    finally:
        (tmp_path / "cat").chmod(stat.S_IRWXU)
