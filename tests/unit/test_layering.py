"""The architecture: which room may import which, no circle of files, and functions that fit on a page."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# rooms by floor, the top first: a file imports from its own room and from floors below it
FLOORS = (
    ("foura.__main__",),
    ("train", "foura.cli"),
    ("foura.sweep",),
    ("foura.run",),
    ("foura.report",),
    ("foura.config",),
    ("foura.schema",),
    ("foura.families",),
    ("foura.methods",),
    ("foura.tracking", "foura.bundled"),
    ("foura.data", "foura.analysis", "foura.backbone"),
    ("foura.metrics", "foura.figures", "foura.files", "foura.distributed", "foura.logs", "foura.threads"),
    ("foura.errors",),
)
ADAPTER = "foura.adapter"  # imports nothing of the project, and may be imported by every room
NEVER = {"pytorch_lightning", "lightning", "hydra", "omegaconf", "mlflow", "diffusers", "datasets", "timm"}
LONGEST, STORY = 60, 40  # lines of a function; of `run`


def modules() -> dict[str, Path]:
    found = {"train": ROOT / "train.py"}
    for path in sorted((ROOT / "foura").rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Every module that a file imports at run time, at its top or inside a function, in full."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & MODULES.keys()) or {node.module or ""}
    return names


GRAPH = {name: (imported(path) & MODULES.keys()) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    rooms = (*(name for floor in FLOORS for name in floor), ADAPTER)
    inside = [name for name in rooms if module == name or module.startswith(f"{name}.")]
    return max(inside, key=len) if inside else ""


def floor(module: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room(module) in floor)


def test_every_file_is_in_a_room() -> None:
    assert [name for name in MODULES if not room(name) and name != "foura"] == []


def test_no_arrow_runs_back_up() -> None:
    up = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if "foura" not in (module, other) and ADAPTER not in (room(module), room(other))
        if floor(other) < floor(module) or (floor(other) == floor(module) and room(other) != room(module))
    ]
    assert up == []


def test_no_circle_of_files_even_through_imports_inside_functions() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(GRAPH[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


def test_the_adapter_stands_alone() -> None:
    for module in MODULES:
        if room(module) == ADAPTER:
            names = imported(MODULES[module])
            assert all(name.startswith(ADAPTER) for name in names & MODULES.keys()), module
            assert not {name.partition(".")[0] for name in names} & NEVER, module


def test_no_family_imports_another() -> None:
    folders = {path.name for path in (ROOT / "foura" / "families").iterdir() if (path / "__init__.py").is_file()}
    for module, others in GRAPH.items():
        _, _, family, *_ = (*module.split("."), "", "")
        for other in others if module.startswith("foura.families.") and family in folders else ():
            _, _, its, *_ = (*other.split("."), "", "")
            assert not other.startswith("foura.families.") or its == family or its not in folders, (module, other)


@pytest.mark.parametrize("name", MODULES)
def test_functions_fit_on_a_page(name) -> None:
    long = {
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
        if node.end_lineno - node.lineno >= LONGEST
    }
    assert long == set()


def test_run_reads_as_a_story() -> None:
    (run,) = (
        node
        for node in ast.parse(MODULES["foura.run.run"].read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    )
    assert run.end_lineno is not None and run.end_lineno - run.lineno + 1 <= STORY
