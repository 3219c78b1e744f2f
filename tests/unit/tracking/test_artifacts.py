"""Stores and artifacts in folders of any name, also of one that they were not made in."""

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from foura.tracking import store as stores
from foura.tracking.address import database, sqlite_uri, tracking_uri
from foura.tracking.artifacts import mend
from foura.tracking.store import artifacts_of, open_store
from foura.tracking.sync import sync
from foura.tracking.tracked_run import start_run

NAMES: tuple[str, ...] = ("a ?x", "a#b", "a%20b", "50%", "%3F", "é ü 日本", "it's", 'say "x"', "a=b", "[x]*", "a&b;c")
NAMES += ("a\\b", "~x", "-x", "a:b@c")


@pytest.mark.parametrize("name", NAMES)
def test_an_address_names_the_file_that_it_was_made_of(name, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = tmp_path / name / "mlflow.db"
    assert database(sqlite_uri(path)) == path and tracking_uri(path.parent) == sqlite_uri(path)
    assert database("http://host") is None


@pytest.fixture
def fresh(monkeypatch, empty_store):
    """fresh(folder): a store with nothing in it, as another process would find it."""
    monkeypatch.setattr(stores, "_ready", set())
    monkeypatch.setattr(stores, "_files", {})

    def make(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(empty_store, folder)
        return folder

    return make


def tracked(outputs, name="one"):
    folder = outputs / "runs" / name
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "w").write_text("weights")
    (folder / "a.txt").write_text("text")
    run = start_run(outputs, folder, name, {"rank": 4}, {"key": "k", "sweep": ""}, None)
    run.log_artifact(folder / "adapter")
    run.log_artifact(folder / "a.txt", "texts")
    assert run.close("finished"), run.error
    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_has_its_store_and_artifacts_in_it(name, fresh, tmp_path) -> None:
    outputs = fresh(tmp_path / name)
    run = tracked(outputs)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # and nothing beside it
    assert (outputs / "artifacts" / run.run_id / "artifacts" / "texts" / "a.txt").read_text() == "text"
    client = MlflowClient(sqlite_uri(outputs / "mlflow.db"))  # MLflow itself finds them there
    assert {item.path for item in client.list_artifacts(run.run_id)} == {"adapter", "texts"}
    assert Path(client.download_artifacts(run.run_id, "adapter/w")).read_text() == "weights"
    assert artifacts_of(outputs, client).get(run.run_id, "texts/a.txt", tmp_path).read_text() == "text"
    assert artifacts_of(outputs, client).get(run.run_id, "texts/b.txt", tmp_path) is None


def places(outputs) -> set[str]:
    with contextlib.closing(sqlite3.connect(outputs / "mlflow.db")) as found:
        rows = found.execute("SELECT artifact_location FROM experiments WHERE name = 'foura'").fetchall()
        return {uri for (uri,) in rows + found.execute("SELECT artifact_uri FROM runs").fetchall()}


def test_a_store_that_was_moved_keeps_its_artifacts(fresh, tmp_path) -> None:
    before, after = fresh(tmp_path / "before"), tmp_path / "af ter"
    run = tracked(before)
    before.rename(after)
    other = tracked(after, "two")
    assert not before.exists()
    kept = artifacts_of(after, open_store(after)[0])
    assert kept.get(run.run_id, "texts/a.txt", tmp_path).read_text() == "text"
    assert kept.get(other.run_id, "texts/a.txt", tmp_path).read_text() == "text"
    here = (after / "artifacts").as_uri()
    assert places(after) == {here, f"{here}/{run.run_id}/artifacts", f"{here}/{other.run_id}/artifacts"}
    assert sync(after) == []


def test_sync_mends_a_store_whose_runs_were_logged_to_the_old_place(fresh, tmp_path) -> None:
    """As version 0.1.0 left it: the folder was moved, and MLflow made the old one again for the next run's artifacts."""
    before, after = fresh(tmp_path / "before"), tmp_path / "after"
    run = tracked(before)
    shutil.copytree(before, after)
    shutil.rmtree(after / "artifacts" / run.run_id)
    assert sync(after) == [("one", "mended")]
    assert (after / "artifacts" / run.run_id / "artifacts" / "adapter" / "w").read_text() == "weights"
    assert all(uri.startswith((after / "artifacts").as_uri()) for uri in places(after))
    assert sync(after) == []


def test_a_link_to_the_folder_is_the_folder(fresh, tmp_path) -> None:
    outputs = fresh(tmp_path / "real")
    tracked(outputs)
    before = places(outputs)
    (tmp_path / "link").symlink_to(outputs)
    mend(tmp_path / "link", sqlite_uri(tmp_path / "link" / "mlflow.db"))
    assert places(outputs) == before


def test_places_elsewhere_stay_as_they_are(fresh, tmp_path) -> None:
    outputs = fresh(tmp_path / "outputs")
    run = tracked(outputs)
    with contextlib.closing(sqlite3.connect(outputs / "mlflow.db")) as found, found:
        found.execute("UPDATE experiments SET artifact_location = 's3://bucket/artifacts'")
        found.execute("UPDATE runs SET artifact_uri = 's3://bucket/artifacts/x'")
    mend(outputs, sqlite_uri(outputs / "mlflow.db"))
    assert places(outputs) == {"s3://bucket/artifacts", "s3://bucket/artifacts/x"}
    assert artifacts_of(outputs, open_store(outputs)[0]).folder(run.run_id) is None
