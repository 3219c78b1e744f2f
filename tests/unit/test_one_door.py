"""Files are opened, listed and written at one door, `foura.untrusted` and `foura.atomic`; every other place has a reason."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# the last part of a call that opens, lists, writes or deletes files, or hands a folder to a library
CALLS: frozenset[str] = frozenset(
    ("open", "read_text", "read_bytes", "write_text", "write_bytes", "load_file", "safe_open")
)
CALLS |= {
    "save_file",
    "copyfile",
    "copytree",
    "copy2",
    "rmtree",
    "move",
    "glob",
    "rglob",
    "iterdir",
    "scandir",
    "listdir",
}
CALLS |= {
    "from_pretrained",
    "load_dataset",
    "load_dataset_builder",
    "savefig",
    "read_csv",
    "read_table",
    "mkdtemp",
    "mkstemp",
}
# calls whose last part is a common word
WHOLE: frozenset[str] = frozenset(
    ("json.load", "torch.load", "torch.save", "np.load", "np.save", "pickle.load", "os.walk")
)
WHOLE |= {
    "OmegaConf.load",
    "OmegaConf.save",
    "os.replace",
    "os.rename",
    "shutil.copy",
    "subprocess.run",
    "subprocess.Popen",
}
WHOLE |= {"os.execv"}
DOOR = ("foura.untrusted", "foura.atomic")
CHECKED = "the folder, or the file, has been through the door"
SCRATCH = "a folder that this process has just made"
OURS = "files of this package or of Python's own library"
LIBRARY = "for users of the library, which imports nothing of the framework"
PROGRAMS = "programs by a fixed list of arguments, without a shell"
ALLOWED: dict[str, tuple[str, set[str]]] = {
    "foura.adapter.export": (LIBRARY, {"save_file", "mkdtemp", "iterdir", "rmtree", "os.replace"}),
    "foura.adapter.hotswap": (LIBRARY, {"from_pretrained", "load_file"}),
    "foura.bundled.docstrings": (OURS, {"rglob", "read_bytes"}),
    "foura.bundled.pretrain_llama": (OURS, {"rglob", "read_text"}),
    "foura.children": (PROGRAMS, {"os.execv"}),
    "foura.cli": (PROGRAMS, {"os.execv", "subprocess.Popen", "open"}),
    "foura.data.confined": (CHECKED, {"load_dataset", "load_dataset_builder", "read_text"}),
    "foura.data.duplicates": (CHECKED, {"open"}),
    "foura.data.images": (CHECKED, {"open"}),
    "foura.data.listing": (CHECKED, {"os.walk", "iterdir", "scandir"}),
    "foura.data.splits": (CHECKED, {"iterdir"}),
    "foura.data.tables": (CHECKED, {"read_table"}),
    "foura.data.unpacked": (CHECKED, {"open"}),
    "foura.families.diffusion.export": (SCRATCH, {"from_pretrained"}),
    "foura.families.diffusion.features": (CHECKED, {"from_pretrained"}),
    "foura.families.diffusion.pipeline": (CHECKED, {"from_pretrained"}),
    "foura.families.encoder.backbone": (CHECKED, {"from_pretrained"}),
    "foura.families.family": (SCRATCH, {"from_pretrained"}),
    "foura.families.images.data": (CHECKED, {"open"}),
    "foura.families.images.export": (SCRATCH, {"load_file", "save_file"}),
    "foura.families.language.backbone": (CHECKED, {"from_pretrained"}),
    "foura.families.transformers_models": (CHECKED, {"from_pretrained"}),
    "foura.figures": (SCRATCH, {"savefig"}),
    "foura.files": ("within `atomic.replacing`, and of a path from the door", {"load_file", "save_file", "open"}),
    "foura.report.collect": ("artifacts of the store, which is trusted", {"read_csv"}),
    "foura.report.page": ("the template, and artifacts of the store", {"read_text", "iterdir", "read_bytes"}),
    "foura.report.style": ("into memory", {"savefig"}),
    "foura.run.artifacts": (SCRATCH, {"glob", "save_file", "iterdir"}),
    "foura.run.cost": ("of the system: /proc/self", {"open"}),
    "foura.run.export": (f"{SCRATCH}; sizes alone", {"rmtree", "os.replace", "copyfile", "glob"}),
    "foura.run.launch": (PROGRAMS, {"subprocess.Popen"}),
    "foura.run.load": (CHECKED, {"from_pretrained"}),
    "foura.run.run": ("names alone", {"glob"}),
    "foura.run.resume": (CHECKED, {"torch.load"}),
    "foura.sweep.callback": ("of the report that this process has just made", {"read_text"}),
    "foura.sweep.listing": ("names and sizes alone, and the move to the trash", {"glob", "rglob", "move"}),
    "foura.sweep.plan": ("names and sizes alone", {"glob", "rglob"}),
    "foura.sweep.requeue": (PROGRAMS, {"subprocess.run"}),
    "foura.tracking.artifacts": (CHECKED, {"copyfile", "copytree", "os.replace"}),
    "foura.tracking.store": (PROGRAMS, {"subprocess.run"}),
    "foura.tracking.sync": ("names alone", {"os.walk"}),
    "foura.tracking.ui": ("names alone, and a browser", {"glob", "open"}),
}


def calls(source: str) -> set[str]:
    """The names in CALLS and WHOLE that a file calls or hands on, but for functions of the package itself by these names."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("foura"):
            own |= {alias.asname or alias.name for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id not in own:
            found |= {node.func.id} & CALLS
        elif isinstance(node, ast.Attribute):
            found |= {ast.unparse(node)} & WHOLE
            called = node.attr in CALLS and not ast.unparse(node).startswith(("folder.open", "self.open", "lazy.open"))
            found |= (
                {node.attr} if called and ast.unparse(node) not in ("gzip.open", "bz2.open", "lzma.open") else set()
            )
    return found


def modules() -> dict[str, Path]:
    paths = [ROOT / "train.py", *sorted((ROOT / "foura").rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


@pytest.mark.parametrize("module", [name for name in modules() if name not in DOOR])
def test_files_are_opened_at_the_door_or_for_a_reason(module) -> None:
    _, allowed = ALLOWED.get(module, ("", set()))
    found = calls(modules()[module].read_text(encoding="utf-8"))
    assert found <= allowed, (
        f"{module} calls {found - allowed}: use foura.untrusted or foura.atomic, or give the reason here"
    )
    assert allowed <= found, f"{module} no longer calls {allowed - found}"


def test_every_reason_belongs_to_a_file() -> None:
    assert set(ALLOWED) <= set(modules())


@pytest.mark.parametrize(
    "line",
    [
        "open('x')",
        "Path('x').read_text()",
        "json.load(f)",
        "Model.from_pretrained(p)",
        "map(torch.load, x)",
        "os.walk(p)",
    ],
)
def test_this_test_sees_what_it_forbids(line) -> None:
    assert calls(line) and not calls(
        "from foura.atomic import write_text\nwrite_text(path, 'x')\nfolder.read('x', 3)\n"
    )
