"""What `make build` leaves: archives with every file of the package, the bundled models among them."""

import subprocess
import sys
import zipfile

import pytest

from foura import __version__
from tests.helpers import built


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(root, tmp_path) -> None:
    for name in ("foura", "pyproject.toml", "README.md", "LICENSE"):  # building leaves files in the folder
        (tmp_path / "source").mkdir(exist_ok=True)
        subprocess.run(["cp", "-r", str(root / name), str(tmp_path / "source")], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path / "dist")]
    subprocess.run([*command, str(tmp_path / "source")], check=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert built.faults(wheel) == []
    inside = zipfile.ZipFile(wheel).namelist()
    assert f"Version: {__version__}" in zipfile.ZipFile(wheel).read(f"foura-{__version__}.dist-info/METADATA").decode()
    for family in ("vit", "llama", "bert", "unet"):
        assert any(name.startswith(f"foura/bundled/weights/{family}") for name in inside)


def test_what_is_missing_or_does_not_belong_in_an_archive_is_named(tmp_path) -> None:
    path = tmp_path / "foura-9.9-py3-none-any.whl"
    files = built.of_package() - {"foura/report/page.html"} | {"foura/secret.txt", "tests/x.py"}
    with zipfile.ZipFile(path, "w") as archive:
        for name in files:
            archive.writestr(name, "")
    assert built.faults(path) == [
        f"{path.name} is not of version {__version__}",
        f"{path.name} lacks foura/report/page.html",
        f"{path.name} has foura/secret.txt, which is no file of the package",
        f"{path.name} has tests/x.py, which is no file of the package",
    ]
