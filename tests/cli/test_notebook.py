"""The quickstart runs as a newcomer would run it, and prints what it is committed with."""

import re

import pytest


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
