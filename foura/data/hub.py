"""Data of `datasets.load_dataset`: a hub id, a folder, or a parquet file."""

from typing import Any

from foura.data.splits import existing
from foura.errors import UserError, reason
from foura.files import here, regular


def read_hub(path: str) -> Any:
    """What `datasets.load_dataset` finds at a hub id, a folder or a parquet file: {split: table}.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    import datasets

    if not path.strip():  # a library would take it for the folder that it happens to be in
        raise UserError("dataset.path is empty: say a hub id, a folder or a parquet file.")
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    local = existing(path) if looks_local else here(path)
    datasets.disable_progress_bars()
    try:
        if local is not None and not local.is_dir():
            return datasets.load_dataset("parquet", data_files=str(regular(local)))
        return datasets.load_dataset(path if local is None else str(local))
    except UserError:
        raise
    except Exception as error:  # the library raises many kinds; all of them say why the data cannot be read
        raise UserError(f"dataset.path={path} could not be loaded: {reason(error)}") from error


def rows(table: Any) -> list[Any]:
    """All rows, or all values, of a table of `datasets`.

    Raises:
        UserError: one that cannot be decoded.
    """
    try:
        return list(table)
    except Exception as error:  # of the decoders of every kind of column, each with its own
        raise UserError(
            f"the data has an item that cannot be read ({reason(error)}); repair it or take it out."
        ) from error
