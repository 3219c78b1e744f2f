"""Files that are not what their names say: pipes, sockets, devices, folders, loops, no end, no bottom."""

import json
import os
import socket
from pathlib import Path

DEEP = 100_000  # brackets
TEXTS = (".json", ".jsonl", ".yaml", ".txt", ".jinja", ".model", ".sha256", ".md")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(
            2**28 if path.suffix == ".safetensors" else 20 * 2**30
        )  # weights may be large; it takes no room on the disk


def _brackets(path: Path) -> None:
    path.write_text("[" * DEEP + "]" * DEEP)


def _objects(path: Path) -> None:
    path.write_text('{"a":' * DEEP + "1" + "}" * DEEP)


def _deep_value(path: Path) -> None:
    """Deep enough to be parsed, and too deep to be copied."""
    path.write_text(json.dumps({"x": 0}).replace("0", "[" * 900 + "]" * 900))


# {kind: makes it at a place where nothing is}
NOT_FILES = {"pipe": _pipe, "socket": _socket, "device": _device, "loop": _loop}
ODD = {**NOT_FILES, "folder": Path.mkdir, "sparse": _sparse}
ODD |= {"brackets": _brackets, "objects": _objects, "deep value": _deep_value}


def put(kind: str, path: Path) -> None:
    """Put an odd file in the place of another one, or where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    ODD[kind](path)
