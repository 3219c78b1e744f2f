"""The quickstart runs as a newcomer would run it, and prints what it is committed with."""

import ast
import importlib
import json
import re

import pytest


def test_what_the_quickstart_imports_from_foura_is_there(root) -> None:
    cells = json.loads((root / "experiments" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    lines = [line for cell in cells if cell["cell_type"] == "code" for line in cell["source"] if line[:1] not in "%!"]
    imported = [node for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.ImportFrom)]
    ours = [
        (node.module, name.name) for node in imported if (node.module or "").startswith("foura") for name in node.names
    ]
    assert ours
    for module, name in ours:
        assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"


@pytest.mark.slow
def test_the_quickstart_runs(root, tmp_path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(root / "experiments" / "quickstart.ipynb", as_version=4)
    printed = ["".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in notebook.cells]
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    again = [
        "".join(o.get("text", "") for o in cell.get("outputs", []) if o.get("name") != "stderr")
        for cell in notebook.cells
    ]
    number = re.compile(r"\d+\.\d+")
    assert [number.sub("", text)[:20] for text in again] == [number.sub("", text)[:20] for text in printed]
    # other processors add up in another order, and 300 steps later that is an image or two
    (first, here), (second, there) = (map(float, number.findall("".join(texts))[:2]) for texts in (printed, again))
    assert second == pytest.approx(first, abs=0.02) and there == pytest.approx(here, abs=0.02)
    assert "LoraConfig ['adapter_config.json', 'adapter_model.safetensors']" in "".join(again)
