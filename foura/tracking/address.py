"""The address of the tracking store: MLFLOW_TRACKING_URI, or the SQLite file of an outputs folder, whatever its name is."""

import contextlib
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

DATABASE = "mlflow.db"
SQLITE = "sqlite:///"


def tracking_uri(outputs: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else the address of the SQLite store in this outputs folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(outputs / DATABASE)


def sqlite_uri(path: Path) -> str:
    """The address of a SQLite file. Of its name, SQLAlchemy takes "?" for a query and decodes "%20"."""
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def database(uri: str) -> Path | None:
    """The file of a SQLite store; None for another kind of store."""
    if not uri.startswith(SQLITE):
        return None
    return Path(urllib.parse.unquote(uri.removeprefix(SQLITE).partition("?")[0]))


@contextlib.contextmanager
def no_stray_folder(uri: str) -> Iterator[None]:
    """Within the context MLflow may open a store: it makes the folder of its file by the name that is not decoded."""
    spelled = Path(uri.removeprefix(SQLITE).partition("?")[0]).parent
    stray = [folder for folder in (spelled, *spelled.parents) if uri.startswith(SQLITE) and not folder.exists()]
    try:
        yield
    finally:
        for folder in stray if "%" in uri else ():
            with contextlib.suppress(OSError):  # not made, or not empty and so not MLflow's
                folder.rmdir()
