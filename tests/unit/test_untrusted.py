"""The door to untrusted folders: what is opened, what is refused, and how files are written."""

import os
import stat
import tracemalloc
from pathlib import Path

import pytest

from foura.atomic import append_text, lock, new_folder, replacing, write_text
from foura.errors import UserError
from foura.files import read_json, read_text
from foura.untrusted import CONFIG, HOLLOW, MB, TEXT, WEIGHTS, Folder, is_name


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "secret").write_text("mine")
    inside = tmp_path / "run"
    (inside / "inner").mkdir(parents=True)
    (inside / "file").write_text("content")
    (inside / "inner" / "file").write_text("content")
    return inside


OUTSIDE = ("../secret", "inner/../../secret", "/etc/passwd", "out", "inner/out", "away/secret", "\0", "")


def with_links(folder: Path) -> None:
    (folder / "out").symlink_to(folder.parent / "secret")
    (folder / "inner" / "out").symlink_to("../../secret")
    (folder / "away").symlink_to(folder.parent)
    (folder / "within").symlink_to("inner/file")


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_outside_of_the_folder_is_opened(name, links, folder) -> None:
    with_links(folder)
    with pytest.raises(UserError):
        Folder(folder, links=links).read(name, MB)


def test_links_inside_are_followed_where_the_rule_allows_it_and_others_by_a_key(folder) -> None:
    with_links(folder)
    assert Folder(folder, links=True).read("within", MB) == b"content"
    with pytest.raises(UserError, match="is a link"):
        Folder(folder).read("within", MB)
    with pytest.raises(UserError, match=r"dataset.links=true"):
        Folder(folder, links=True, key="dataset.links").read("out", MB)
    assert Folder(folder, links=True, key="dataset.links", lifted=True).read("out", MB) == b"mine"


def test_the_folder_itself_may_be_a_link_because_the_user_named_it(folder) -> None:
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    assert Folder(linked).read("file", MB) == b"content"
    assert Folder(linked).read(linked / "inner" / "file", MB) == b"content"


def test_a_snapshot_of_a_hub_cache_is_read_and_other_folders_beside_it_are_not(tmp_path) -> None:
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc" / "unet"
    snapshot.mkdir(parents=True)
    (cache / "blobs" / "123").write_text("{}")
    (cache / "refs").write_text("{}")
    (snapshot / "config.json").symlink_to(cache / "blobs" / "123")
    (snapshot / "evil.json").symlink_to(cache / "refs")
    assert Folder(snapshot, links=True).read("config.json", MB) == b"{}"
    assert Folder(snapshot.parent, links=True).read("unet/config.json", MB) == b"{}"
    with pytest.raises(UserError):
        Folder(snapshot, links=True).read("evil.json", MB)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket", "nothing", "loop"])
def test_only_ordinary_files_are_opened_and_nothing_hangs(kind, folder) -> None:
    path = folder / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        import socket

        here = os.getcwd()
        os.chdir(folder)  # the name of a socket is short
        try:
            socket.socket(socket.AF_UNIX).bind("odd")
        finally:
            os.chdir(here)
    elif kind == "loop":
        path.symlink_to("odd")
    for links in (False, True):
        with pytest.raises(UserError):
            Folder(folder, links=links, lifted=kind == "device").read("odd", MB)
    if kind != "nothing":
        with pytest.raises(UserError):
            Folder(folder).whole("odd" if kind != "folder" else "..")


def test_a_file_of_no_real_size_is_refused_before_it_is_read(folder) -> None:
    with open(folder / "config.yaml", "wb") as file:
        file.truncate(3 * 2**30)  # it takes no room on the disk
    with pytest.raises(UserError, match=r"has 3 GB, more than the 1 MB"):
        read_text(folder / "config.yaml", Folder(folder), CONFIG)
    with pytest.raises(UserError, match="more than"):
        read_json(folder / "config.yaml")
    with pytest.raises(UserError, match=r"backbone.any_size=true"):
        Folder(folder, size_key="backbone.any_size").file("config.yaml", CONFIG)


def test_a_small_file_takes_little_memory_however_large_it_could_be(folder) -> None:
    """Python reserves as many bytes as it is asked to read: a bound of gigabytes would end every read under a limit."""
    Folder(folder).read("file", TEXT)
    tracemalloc.start()
    try:
        assert Folder(folder).read("file", TEXT) == b"content"
        assert tracemalloc.get_traced_memory()[1] < MB
    finally:
        tracemalloc.stop()


def test_a_file_of_holes_is_refused_before_it_is_copied(folder) -> None:
    path = folder / "model.safetensors"
    with open(path, "wb") as file:
        file.write(b"x")
        file.truncate(HOLLOW + 2 * 2**30)
    for call in (Folder(folder).file, Folder(folder).read, lambda name, _: Folder(folder).whole(name)):
        with pytest.raises(UserError, match="is nearly empty"):
            call(path.name, WEIGHTS)
    assert Folder(folder, any_size=True).file(path.name, WEIGHTS) == path
    with open(path, "r+b") as file:  # what is written is a hundredth of it, at both ends
        file.write(bytes([1]) * (11 * MB))
        file.seek(2 * 2**30)
        file.write(bytes([1]) * (11 * MB))
    assert Folder(folder).file(path.name, WEIGHTS) == path


def test_a_file_that_grows_while_it_is_read_is_refused(folder, monkeypatch) -> None:
    monkeypatch.setattr(Folder, "file", lambda self, path, most: self.place(path))  # as if it had been small then
    (folder / "file").write_bytes(bytes(MB + 1))
    with pytest.raises(UserError, match="more than"):
        Folder(folder).read("file", MB)


def test_the_files_of_a_folder_are_listed_once_and_links_out_are_refused(folder) -> None:
    (folder / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "inner")
    found = Folder(folder, links=True).files()
    assert [path.relative_to(folder).as_posix() for path in found] == ["again/file", "file"]
    (folder / "inner" / "out").symlink_to("/etc/passwd")
    with pytest.raises(UserError):
        Folder(folder, links=True).files()


def modes(*paths: Path) -> set[str]:
    return {oct(stat.S_IMODE(path.stat().st_mode)) for path in paths}


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_written_files_have_the_permissions_of_the_umask(umask, tmp_path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "x")
        append_text(tmp_path / "lines", "x")
        with replacing(tmp_path / "weights") as scratch:
            scratch.unlink()
            os.close(os.open(scratch, os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
        with new_folder(tmp_path / "new") as scratch:
            scratch.mkdir()
            os.close(os.open(scratch / "inner", os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert modes(*(path for path in tmp_path.rglob("*") if path.is_file())) == {oct(0o666 & ~umask)}


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "status.json").symlink_to(tmp_path / "mine")
    write_text(tmp_path / "status.json", "new")
    assert (tmp_path / "mine").read_text() == "mine" and (tmp_path / "status.json").read_text() == "new"
    (tmp_path / "tracking.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is not a file"):
        append_text(tmp_path / "tracking.jsonl", "more")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_lock_that_is_not_a_file_is_refused_in_a_sentence(kind, tmp_path) -> None:
    (tmp_path / "mine").write_text("mine")
    path = tmp_path / ".lock"
    {"link": lambda: path.symlink_to(tmp_path / "mine"), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[kind]()
    with pytest.raises(UserError, match="is not a file, and one is to be written there"):
        lock(path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_appears_complete_or_not_at_all(tmp_path) -> None:
    out = tmp_path / "a" / "out[1]"
    with pytest.raises(OSError, match="full"), new_folder(out) as scratch:  # noqa: PT012
        scratch.mkdir()
        (scratch / "half").write_text("x")
        raise OSError("the disk is full")
    assert not out.exists() and list(out.parent.iterdir()) == []
    killed = out.with_name(f".{out.name}.{2**22 - 1}.writing")  # of a process that was killed
    killed.mkdir()
    with new_folder(out) as scratch:
        scratch.mkdir()
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    with pytest.raises(UserError, match="exists already"), new_folder(out):
        pass
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "dangling"):
        pass


@pytest.mark.parametrize("name", ["", ".", "..", "...", "a/b", "../x", "a\0", "a" * 101, "é\n", None, 3, ["a"]])
def test_what_is_not_a_name(name) -> None:
    assert not is_name(name)
    assert all(map(is_name, ("a", "a.b", "rank=4".replace("=", "+"), "é", ".hidden", "a" * 100)))
