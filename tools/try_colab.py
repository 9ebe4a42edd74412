"""Run the notebooks as a person in Colab does: badge, run all, the next one. Outside the checkout, each in a new machine.

Usage: python tools/try_colab.py [--python ENV/bin/python] [--only 01 02 ...]
A machine is a folder that takes the place of /content, an empty home and a copy of an environment, by default this
program's own, that stands for what Colab brings along: the notebooks' package is not in it. Every cell runs, whatever
its flags, the set-up cell as it is: git takes the repository's address for the last commit here (uncommitted changes
included), so the clone, the wheel that pip builds of it and its installation are real. `google.colab` is a stand-in:
a kernel and a shell of those names, and `drive.mount`, which shows a folder that outlives the machines.
Each notebook runs alone, in a machine without Drive; and all in order, each in its machine, with Drive mounted by the
box in the set-up cell. Fails on an exception, a warning or a traceback in an output, on files written elsewhere than
in the workspace, and if the demo does not end up shown inline, by Colab's proxy, and answering. Needs to be root, or
/content to be there, for a private /content; without it Drive is left out, and that is said.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbdev.config import get_config

TICK = "keep_on_drive = False", "keep_on_drive = True"  # what Colab's form does to the source
SET_UP = {"colab.txt", "amazon_ft_source", "bench"}  # what the set-up cell puts beside the workspace
NOISE = re.compile(r"Traceback|\w*Warning: ")
STAND_IN = {
    "_shell.py": """
from IPython.core.interactiveshell import InteractiveShellABC
from ipykernel.zmqshell import ZMQInteractiveShell
class Shell(ZMQInteractiveShell):
    pass
InteractiveShellABC.register(Shell)
""",
    "_kernel.py": """
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type
from google.colab._shell import Shell
class Kernel(IPythonKernel):
    shell_class = Type(Shell)
""",
    "drive.py": """
import os
from pathlib import Path
def mount(mountpoint):
    Path(mountpoint).mkdir(parents=True)
    (Path(mountpoint) / "MyDrive").symlink_to(os.environ["STAND_IN_DRIVE"])
    print("Mounted at", mountpoint)
""",
    "__init__.py": "",
}


def run(*command, **kwargs) -> str:  # Its output
    "Run a command that must succeed."
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **kwargs).stdout.strip()


def repository(
    folder: Path,  # Where to put it
    checkout: Path,  # Its working tree is what the repository will hold
) -> dict:  # Environment variables that make git find it at its public address
    "A bare repository whose main branch is the working tree."
    cfg, bare = get_config(), folder / "repository.git"
    commit = run("git", "-C", checkout, "stash", "create") or run("git", "-C", checkout, "rev-parse", "HEAD")
    run("git", "init", "-q", "--bare", "-b", cfg.branch, bare)
    run("git", "-C", checkout, "push", "-q", bare, f"{commit}:refs/heads/{cfg.branch}")
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{bare}.insteadOf", "GIT_CONFIG_VALUE_0": cfg.git_url}


def image(
    folder: Path,  # Where to put it
    python: str,  # Of the environment that has the dependencies
) -> Path:  # Its Python
    "An environment on top of another one, with `google.colab` and without this package."
    run(python, "-m", "venv", "--without-pip", folder)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
    own = folder / site.relative_to(run(python, "-c", "import sys; print(sys.prefix)"))
    (own / "below.pth").write_text(f"{site}\n")
    for name, text in STAND_IN.items():
        (own / "google/colab").mkdir(parents=True, exist_ok=True)
        (own / "google/colab" / name).write_text(text)
    pip = folder / "bin/pip"
    pip.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip "$@"\n')
    pip.chmod(0o755)
    missing = [name for name in ("ipykernel", "ipywidgets", "setuptools") if not list(site.glob(f"{name}-*"))]
    if missing:  # Colab has them
        run(pip, "install", "-q", *missing)
    return folder / "bin/python"


@contextmanager
def private_content():
    "Whether each machine can have a /content of its own, by a mount that no other process sees."
    content = Path("/content")
    made = os.geteuid() == 0 and not content.exists()
    if made:
        content.mkdir()
    try:
        probe = ["unshare", "-m", "mount", "--bind", "/dev", "/content"]
        yield content.exists() and subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0
    finally:
        if made:
            content.rmdir()


def machine(
    folder: Path,  # Of the machine
    layer: Path,  # The image's folder
    base: str,  # Python of the environment below
    env: dict,  # From repository
    private: bool,  # From private_content
    drive: Path = None,  # Folder that shows as MyDrive once mounted
) -> dict:  # Environment variables of its kernel
    "Make an empty machine, and a kernelspec named `colab` for it."
    for name in ("content", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(layer, folder / "env", symlinks=True)
    pip = folder / "env/bin/pip"
    pip.write_text(pip.read_text().replace(str(layer), str(folder / "env")))
    start = f"{folder}/env/bin/python -m ipykernel_launcher --IPKernelApp.kernel_class=google.colab._kernel.Kernel -f"
    argv = ["sh", "-c", f'exec {start} "$0"', "{connection_file}"]
    if private:
        inside = f'mount --bind {folder}/content /content && cd /content && exec {start} "$0"'
        argv = ["unshare", "-m", "sh", "-c", inside, "{connection_file}"]
    spec = folder / "jupyter/kernels/colab/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=argv, display_name="colab", language="python")))
    path = f"{folder}/env/bin{os.pathsep}{Path(base).parent}{os.pathsep}{os.environ['PATH']}"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "JUPYTER", "VIRTUAL_ENV", "AMAZON_FT", "GRADIO"))}
    return keep | env | dict(PATH=path, HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp", JUPYTER_PATH=f"{folder}/jupyter",
                             STAND_IN_DRIVE=str(drive), OMP_NUM_THREADS="1", PIP_NO_WARN_SCRIPT_LOCATION="1", PIP_ROOT_USER_ACTION="ignore")


def trouble(
    nb,  # An executed notebook
) -> list:  # Lines that no output should hold
    "Warnings and tracebacks in the outputs of cells that ended well."
    texts = ["".join(output["text"]) for cell in nb.cells for output in cell.get("outputs", [])
             if output["output_type"] == "stream"]
    return [line for text in texts for line in text.splitlines() if NOISE.search(line)]


def check_inline(
    nb,  # The demo's notebook, its kernel still running
):
    "The last cell shows the page by Colab's proxy and nothing public, and the page answers."
    shown = [output for cell in nb.cells if cell.cell_type == "code" for output in cell.outputs][-1]
    script = shown["data"]["application/javascript"]
    assert "google.colab.kernel.proxyPort" in script, script[:200]
    public = [line for cell in nb.cells for output in cell.get("outputs", []) for line in str(output).splitlines()
              if "gradio.live" in line]
    assert not public, public
    port = re.search(r"\}\)\((\d+),", script)[1]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config") as answer:
        assert json.load(answer)["is_colab"]


def run_all(
    path: Path,  # The notebook
    folder: Path,  # Its machine
    env: dict,  # Environment variables of its kernel
    drive: bool,  # Whether to tick the box
) -> list:  # What went wrong
    "Open a notebook and run all of its cells."
    nb, start = nbformat.read(path, as_version=4), time.perf_counter()
    for cell in nb.cells:
        if drive:
            cell.source = cell.source.replace(*TICK)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(nb, timeout=900, kernel_name="colab", resources={"metadata": {"path": str(folder / "content")}})
    os.environ["JUPYTER_PATH"] = str(folder / "jupyter")
    wrong = []
    client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs.insert(0, str(folder / "jupyter/kernels"))
    with open(folder / "kernel.err", "w") as err, client.setup_kernel(env=env, stderr=err):
        try:
            for i, cell in enumerate(nb.cells):
                client.execute_cell(cell, i)
            if "demo" in path.name:
                check_inline(nb)
        except CellExecutionError as error:
            wrong = [str(error)[-3000:]]
    err = (folder / "kernel.err").read_text()
    wrong += trouble(nb) + ([err[-2000:]] if NOISE.search(err) else [])
    workspace = {"drive"} if drive else {"amazon_ft_runs"}
    strays = {file.name for file in (folder / "content").iterdir()} - SET_UP - workspace - {".hypothesis"}
    strays |= {file.name for file in (folder / "home").iterdir() if not file.name.startswith(".")}
    wrong += [f"written outside the workspace: {name}" for name in sorted(strays)]
    where = "with Drive" if drive else "alone"
    print(f"{path.name}, {where}: {'FAILED' if wrong else 'ok'}, {time.perf_counter() - start:.0f} s", *wrong, sep="\n", flush=True)
    return wrong


def main() -> int:
    "Each notebook alone, and all in order on one Drive, both at a time."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python of an environment with the dependencies")
    parser.add_argument("--only", nargs="*", default=["0"], help="beginnings of notebooks' names")
    args = parser.parse_args()
    checkout = get_config().config_path
    paths = [path for path in sorted(get_config().nbs_path.glob("[0-9]*.ipynb")) if path.name.startswith(tuple(args.only))]
    with TemporaryDirectory() as tmp, private_content() as private:
        tmp = Path(tmp)
        env, python = repository(tmp, checkout), image(tmp / "image", args.python)
        (tmp / "drive").mkdir()

        def open_and_run(name, path, drive=None):
            folder = tmp / f"{name}-{path.stem}"
            kernel_env = machine(folder, tmp / "image", args.python, env, private, drive)
            wrong = run_all(path, folder, kernel_env, drive is not None)
            shutil.rmtree(folder)
            return wrong

        print(run(python, "-c", "import sys, torch; print('Python', sys.version.split()[0], 'torch', torch.__version__)"))
        with ThreadPoolExecutor(2) as both:
            alone = both.submit(lambda: sum((open_and_run("alone", path) for path in paths), []))
            order = both.submit(lambda: sum((open_and_run("order", path, tmp / "drive") for path in paths), []) if private else [])
            wrong = alone.result() + order.result()
        if not private:
            print("not checked, /content cannot be had here: with Drive")
        for name in {file.name for file in (tmp / "drive").iterdir()} - {"amazon_ft"}:
            wrong.append(name)
            print(f"written on Drive, outside the workspace: {name}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
