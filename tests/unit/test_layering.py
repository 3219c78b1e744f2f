"""The architecture: which room may import which, no circle of files, and functions that fit on a page."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The rooms by floor, the top first. A file imports from its own room and from the floors below it, at its top or inside a
# function; rooms of one floor do not import each other. CONTRIBUTING.md has the list in a line.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("foura.__main__",),
    ("train", "foura.cli"),
    ("foura.sweep",),
    ("foura.run",),
    ("foura.report",),
    ("foura.config",),
    ("foura.mistakes",),
    ("foura.schema",),
    ("foura.families",),
    ("foura.methods",),
    ("foura.tracking", "foura.bundled"),
    ("foura.data", "foura.analysis", "foura.backbone"),
    ("foura.metrics", "foura.figures", "foura.files", "foura.distributed", "foura.logs", "foura.threads"),
    ("foura.untrusted", "foura.atomic", "foura.children"),
    ("foura.errors",),
    ("foura.escape",),
)
# Importable from every floor. The adapter is the library: it imports nothing of the project, nor what only "lab" installs.
ADAPTER, PACKAGE = "foura.adapter", "foura"
LAB = {
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "hydra",
    "omegaconf",
    "mlflow",
    "diffusers",
    "datasets",
    "timm",
}
PURE = ("foura.analysis",)  # rooms of functions on numbers, which import nothing of the project but its errors
LONGEST, STORY = 60, 40  # lines of a function; of `run`, which tells a run from start to end


def modules() -> dict[str, Path]:
    """{module: file}; the `__init__` of a package is a file like others, because records are registered there."""
    found = {"train": ROOT / "train.py"}
    for path in sorted((ROOT / "foura").rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(source: str, known: Mapping[str, object] = MODULES) -> set[str]:
    """Every module that a file imports at run time, at its top or inside a function, in full."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= (inside & known.keys()) or {node.module or ""}
    return names


IMPORTS = {name: imported(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
GRAPH = {name: (names & MODULES.keys()) - {name} for name, names in IMPORTS.items()}


def room(module: str) -> str:
    """The room of a module; "" for none."""
    rooms = (*(name for floor in FLOORS for name in floor), ADAPTER)
    inside = [name for name in rooms if module == name or module.startswith(f"{name}.")]
    return max(inside, key=len) if inside else ""


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def upward(graph: Mapping[str, set[str]]) -> list[str]:
    """The imports from a room on the same floor or above."""
    free = {PACKAGE, *(name for name in graph if room(name) == ADAPTER)}
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if module not in free and other not in free and room(module) != room(other) and floor(other) <= floor(module)
    ]


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """A circle of files, its first one at both ends; [] where there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        for other in sorted(graph[module]) if module not in done else ():
            if found := visit(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next(filter(None, (visit(module, []) for module in graph)), [])


def functions(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, also of those inside others."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            yield node.name, node.end_lineno - node.lineno + 1


def test_every_file_is_in_a_room() -> None:
    assert [name for name in MODULES if not room(name) and name != PACKAGE] == []


def test_no_import_runs_back_up() -> None:
    assert upward(GRAPH) == []


def test_no_circle_of_files_even_through_imports_inside_functions() -> None:
    assert circle(GRAPH) == []


def test_the_adapter_stands_alone() -> None:
    for module, names in IMPORTS.items():
        if room(module) == ADAPTER:
            assert all(name.startswith(ADAPTER) for name in names & MODULES.keys()), module
            assert not {name.partition(".")[0] for name in names} & LAB, module


@pytest.mark.parametrize("pure", PURE)
def test_pure_rooms_import_no_more_than_errors(pure) -> None:
    inside = [module for module in MODULES if room(module) == pure]
    assert inside
    for module in inside:
        assert {name for name in GRAPH[module] if room(name) != pure} <= {"foura.errors"}, module


def test_one_room_imports_mlflow() -> None:
    """Its `__init__` makes the settings that MLflow reads when it is imported."""
    users = {module for module, names in IMPORTS.items() if any(name.partition(".")[0] == "mlflow" for name in names)}
    assert users and {room(module) for module in users} == {"foura.tracking"}


def test_no_family_imports_another() -> None:
    folders = {path.parent.name for path in (ROOT / "foura" / "families").glob("*/__init__.py")}

    def family(module: str) -> str:
        names = module.removeprefix("foura.families.").split(".")
        return names[0] if module.startswith("foura.families.") and names[0] in folders else ""

    assert len(folders) >= 4
    pairs = [(module, other) for module, others in GRAPH.items() for other in others]
    assert [pair for pair in pairs if all(map(family, pair)) and family(pair[0]) != family(pair[1])] == []


@pytest.mark.parametrize("name", MODULES)
def test_functions_fit_on_a_page(name) -> None:
    source = MODULES[name].read_text(encoding="utf-8")
    assert [(function, lines) for function, lines in functions(source) if lines > LONGEST] == []


def test_run_reads_as_a_story() -> None:
    lengths = dict(functions(MODULES["foura.run.run"].read_text(encoding="utf-8")))
    assert lengths["run"] <= STORY


def test_these_tests_see_what_they_forbid() -> None:
    lazy = "def f():\n    from foura.families import images\n    import foura.cli\nif TYPE_CHECKING:\n    import foura.run\n"
    assert imported(lazy) == {"foura.families.images", "foura.cli"}
    planted = {**GRAPH, "foura.data.splits": {"foura.run.loop", "foura.tracking.store"}}
    assert upward(planted) == [
        "foura.data.splits imports foura.run.loop",
        "foura.data.splits imports foura.tracking.store",
    ]
    found = circle({**GRAPH, "foura.errors": {"foura.files"}})
    assert found[0] == found[-1] and set(found) >= {"foura.errors", "foura.files"}
    assert list(functions("def f():\n    def g():\n        pass\n\n")) == [("f", 3), ("g", 2)]
