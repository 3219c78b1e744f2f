"""Data of `datasets.load_dataset`: a hub id, a folder, or a parquet file."""

from typing import Any

from foura.data.splits import check_column, existing
from foura.errors import UserError, reason
from foura.files import here, regular


def read_hub(path: str) -> Any:
    """{split: table} of a hub id, a folder or a parquet file, as `datasets.load_dataset` reads it.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    import datasets

    if not path.strip():  # the library would take it for the current folder
        raise UserError("dataset.path is empty: name a hub id, a folder or a parquet file.")
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
    """All rows of a table of `datasets`, or all values of a column.

    Raises:
        UserError: one that cannot be decoded.
    """
    try:
        return list(table)
    except Exception as error:  # each kind of column has a decoder, which raises its own kinds
        raise UserError(
            f"the data has an item that cannot be read ({reason(error)}); repair it or take it out."
        ) from error


def image_records(table: Any, column: str) -> list[Any]:
    """{"bytes": …, "path": …} of each image in the column that dataset.columns.image names; nothing is decoded.

    Raises:
        UserError: there is no such column, or it does not hold images.
    """
    import datasets

    check_column("dataset.columns.image", column, table.column_names)
    if not isinstance(table.features[column], datasets.Image):
        raise UserError(f"dataset.columns.image={column} holds {table.features[column]}, not images.")
    return rows(table.select_columns([column]).cast_column(column, datasets.Image(decode=False))[column])


def encoded(records: list[Any]) -> list[Any]:
    """The bytes or the path of each of the `image_records`.

    Raises:
        UserError: an item without an image.
    """
    images = [record and (record["path"] if record["bytes"] is None else record["bytes"]) for record in records]
    if not all(images):
        raise UserError(f"item {[bool(image) for image in images].index(False)} of the data has no image; take it out.")
    return images
