"""Execute notebooks in place, so that the pages show what the code prints today.

Usage: python tools/run_nbs.py [--check] [nbs/00_core.ipynb ...]     without names: every notebook
Cells that nbdev_test skips keep their stored outputs. Progress bars are dropped; a warning, other noise on stderr
or a path of this machine in an output fails the run. `--check` looks at the stored outputs and executes nothing.
"""
import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.process import NBProcessor

from machine_paths import machine_paths, output_texts

KERNELSPEC = {"display_name": "python3", "language": "python", "name": "python3"}
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks for notebook widgets that no page could show
}
PROGRESS = re.compile(r"\d+%\|.*\||\d \w+ \[\d\d:\d\d|\d+(it|ex) \[\d\d:\d\d|^\x1b\[A")


def skipped(
    path: Path,  # A notebook
    run_flags: set,  # Flags whose cells are run all the same, e.g. {"gpu"}
) -> set:  # Ids of the cells to leave alone
    "Cells that nbdev_test would not run."
    flags = set(get_config().tst_flags.split()) - run_flags
    ids = set()
    for cell in NBProcessor(path, process=True).nb.cells:
        directives = cell.directives_ or {}
        off = directives.get("eval:", [""])[0].lower() == "false"
        if off or flags & directives.keys() or "nbdev_export(" in cell.source:
            ids.add(cell.id)
    return ids


def without_progress(
    outputs: list,  # Outputs of a code cell
) -> list:  # The outputs without widgets and progress bars
    "Drop what only means something while it moves; what else stands on stderr stays, to be complained of."
    kept = []
    for output in outputs:
        data = output.get("data", {})
        if any("widget-view" in mime for mime in data) or "<progress " in data.get("text/html", ""):
            continue
        if output.get("name") == "stderr":
            lines = [line for line in re.split(r"[\r\n]+", output["text"]) if not PROGRESS.search(line)]
            output["text"] = "\n".join(line for line in lines if line.strip())
        if output.get("name") != "stderr" or output["text"]:
            kept.append(output)
    return kept


def complaints(
    nb: dict,  # A notebook that was run
) -> list:  # One line each; empty when the outputs are fit to show
    "What no page should show."
    found = []
    for i, cell in enumerate(nb["cells"]):
        for output in cell.get("outputs", []):
            text = "\n".join(output_texts(output))
            found += [f"cell {i}: path of this machine: {path}" for path in machine_paths(text)]
            if output["output_type"] == "error":
                found.append(f"cell {i}: {output['ename']}: {output['evalue']}")
            elif output.get("name") == "stderr":
                found.append(f"cell {i}: on stderr: {text.strip()[:300]}")
            elif re.search(r"\w*Warning: ", text):
                found.append(f"cell {i}: a warning: {text.strip()[:300]}")
    return found


def run(
    path: Path,  # A notebook, executed and rewritten in place
    run_flags: set,  # Flags whose cells are run all the same
    timeout: int,  # Seconds a cell may take
) -> list:  # Complaints about its outputs
    "Execute `path` in its own folder and clean it."
    nb = nbformat.read(path, as_version=4)
    skip = skipped(path, run_flags)
    for cell in nb.cells:
        cell.metadata.tags = ["skip-execution"] if cell.id in skip else []
    where = {"metadata": {"path": path.parent}}
    quiet = ["--log-level=ERROR"]
    try:
        NotebookClient(nb, timeout=timeout, kernel_name="python3", resources=where, extra_arguments=quiet).execute()
    except CellExecutionError as error:
        return [f"left as it was: {error}"]
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.outputs = without_progress(cell.outputs)
    nb.metadata = {"kernelspec": KERNELSPEC}
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(str(path))
    return complaints(nbformat.read(path, as_version=4))


def main() -> int:
    "Run or check the notebooks named on the command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="execute nothing, look at the stored outputs")
    parser.add_argument("--flags", default="", help="flags of settings.ini's tst_flags whose cells to run, e.g. gpu")
    parser.add_argument("--timeout", type=int, default=900, help="seconds a cell may take")
    args = parser.parse_args()
    os.environ.update(QUIET)
    failed = False
    for path in args.notebooks or sorted(get_config().nbs_path.glob("*.ipynb")):
        if args.check:
            found = complaints(nbformat.read(path, as_version=4))
        else:
            found = run(path, set(args.flags.split()), args.timeout)
        print(f"{path.name}: {'ok' if not found else f'{len(found)} complaint(s)'}", *found, sep="\n  ", flush=True)
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
