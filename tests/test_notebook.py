"""The notebook runs from its first cell to its last, and is stored without what belongs to one machine."""

import re
import sys
from pathlib import Path

import pytest
from small import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOK = ROOT / "examples" / "ali_jax_tour.ipynb"
MAX_BYTES = 200_000  # outputs included


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shorten(notebook, steps: int) -> None:
    """Set the length of the trainings, a variable in the first code cell."""
    first = code_cells(notebook)[0]
    first.source, count = re.subn(r"^STEPS = [\d_]+", f"STEPS = {steps}", first.source)
    assert count == 1


def make_kernel(folder: Path):
    """Give a kernel of this interpreter that talks through files in a folder, not through the network."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    specs = KernelSpecManager(kernel_dirs=[])  # none is installed, so the native one is taken
    kernel = AsyncKernelManager(kernel_spec_manager=specs, transport="ipc", ip=str(folder / "kernel"))
    assert kernel.kernel_spec.argv[0] == sys.executable
    return kernel


def test_the_notebook_runs_from_start_to_end(tmp_path, monkeypatch):
    for name, folder in {"HOME": "", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    notebook = read()
    shorten(notebook, 4)
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client = nbclient.NotebookClient(notebook, km=make_kernel(tmp_path), timeout=300, resources=resources)
    client.execute()
    assert [cell.execution_count for cell in code_cells(notebook)] == [
        *range(1, 1 + len(code_cells(notebook)))
    ]
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert "found:" in "".join(output.get("text", "") for output in outputs)


def test_the_notebook_is_stored_small_and_without_traces_of_a_machine():
    text = NOTEBOOK.read_text()
    assert len(text.encode()) < MAX_BYTES
    assert not re.search(r"/(home|root|tmp|Users)/|\"execution\"|image/jpeg|\"stderr\"", text)
    notebook = read()
    nbformat.validate(notebook)
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
