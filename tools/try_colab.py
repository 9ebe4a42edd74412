"""Run the notebooks as a person in Colab does: open, run all, open the next. Each in a new machine, not the checkout.

Usage: python tools/try_colab.py [--python ENV/bin/python] [--only 01 02 ...]
Helper notebooks, whose number has a letter, are left to nbdev_test. A machine is an empty /content, an empty home and a
copy of an environment that stands for what Colab brings along, by default the one that runs this. Every cell runs,
whatever its flags, and the set-up cell as it stands: git is told to find an owner's repository in a copy of this
checkout (uncommitted changes included), so the clone is real, and so is the wheel that pip builds of it and installs.
Of `google.colab` there is a stand-in: kernel and shell by those names, and `drive.mount`, which shows a folder that
outlives the machines. An old torchao lies about, as in Colab.
The stages run in order, each in its machine, with Drive mounted by the box in the set-up cell; the other notebooks run
alone, without Drive and from a fork, and so does the demo, which needs all stages. Fails on an exception, a warning or
a traceback, on files written outside the workspace, and unless the demo ends up shown inline, by Colab's proxy, not
public, and answering.
A /content of each machine's own takes root and `unshare`; without them Drive is left out, and that is said.
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

BOX, FORK = "keep_on_drive", "a-fork"
STAGES = ("01", "02", "03", "04", "06")  # the notebooks that write to the workspace
# beside the workspace, from the set-up and a test
SET_UP = {"colab.txt", "amazon_ft_source", "bench", "products.txt", ".hypothesis"}
NOISE = re.compile(r"Traceback|\w*Warning: ")
PROVIDED = ("ipykernel", "ipywidgets", "setuptools")  # by Colab, beside what the package needs
STAND_IN = {
    "google/colab/__init__.py": "",
    "google/colab/_shell.py": """
from IPython.core.interactiveshell import InteractiveShellABC
from ipykernel.zmqshell import ZMQInteractiveShell
class Shell(ZMQInteractiveShell):
    pass
InteractiveShellABC.register(Shell)
""",
    "google/colab/_kernel.py": """
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type
from google.colab._shell import Shell
class Kernel(IPythonKernel):
    shell_class = Type(Shell)
""",
    "google/colab/drive.py": """
import os
from pathlib import Path
def mount(mountpoint):
    Path(mountpoint).mkdir(parents=True)
    (Path(mountpoint) / "MyDrive").symlink_to(os.environ["STAND_IN_DRIVE"])
    print("Mounted at", mountpoint)
""",
    "torchao/__init__.py": "",
    "torchao-0.10.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: torchao\nVersion: 0.10.0\n",
    "torchao-0.10.0.dist-info/RECORD": "torchao/__init__.py,,\ntorchao-0.10.0.dist-info/METADATA,,\n",
}


def output_of(*command, **kwargs) -> str:
    "What a command prints that must succeed."
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True, **kwargs)
    return done.stdout.strip()


def repository(
    folder: Path,  # Where to put it
) -> Path:
    "A repository whose one commit is this checkout as it is."
    cfg, copy = get_config(), folder / "repository"
    listed = output_of("git", "-C", cfg.config_path, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.strip("\0").split("\0"):
        if (cfg.config_path / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(cfg.config_path / name, copy / name)
    output_of("git", "init", "-q", "-b", cfg.branch, copy)
    output_of("git", "-C", copy, "add", "-A", "-f")
    output_of("git", "-C", copy, "-c", "user.name=-", "-c", "user.email=-", "commit", "-q", "-m", "As it is")
    return copy


def found_at(
    copy: Path,  # From repository
    owner: str,  # Of the public address
) -> dict:  # Environment variables for git
    "Make git find a repository at an owner's public address, and at no other's."
    address = get_config().git_url.replace(f"/{get_config().user}/", f"/{owner}/")
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{copy}.insteadOf", "GIT_CONFIG_VALUE_0": address}


def image(
    folder: Path,  # Where to put it
    python: str,  # Of the environment below, which has the dependencies
) -> Path:  # Its Python
    "An environment on top of another one, with the stand-ins."
    output_of(python, "-m", "venv", "--without-pip", folder)
    where = "import sys, sysconfig; print(sys.prefix, sysconfig.get_path('purelib'))"
    prefix, below = output_of(python, "-c", where).split()
    site = folder / Path(below).relative_to(prefix)
    (site / "below.pth").write_text(f"{below}\n")  # a plain line: editable packages down there stay unseen
    for name, text in STAND_IN.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    missing = [name for name in PROVIDED if not list(Path(below).glob(f"{name}-*"))]
    if missing:
        output_of(folder / "bin/python", "-m", "pip", "install", "-q", *missing)
    return folder / "bin/python"


@contextmanager
def private_content():
    "Whether a machine can have a /content that no other process sees."
    content = Path("/content")
    made = os.geteuid() == 0 and not content.exists()
    if made:
        content.mkdir()
    try:
        probe = ["unshare", "-m", "mount", "--bind", "/dev", str(content)]
        yield bool(content.exists() and shutil.which("unshare")
                   and subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0)
    finally:
        if made:
            content.rmdir()


def machine(
    folder: Path,  # Of the machine
    layer: Path,  # The image's folder
    python: str,  # Of the environment below
    private: bool,  # From private_content
) -> dict:  # Environment variables of its kernel
    "Make a machine, and a kernel named `colab` for it."
    for name in ("content", "home", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copytree(layer, folder / "env", symlinks=True)
    for script in Path(python).parent.iterdir():  # pip and transformers above all, to run on this machine's Python
        if script.is_file() and re.match(rb"#!.*python", script.read_bytes()):
            own = folder / "env/bin" / script.name
            own.write_text(f"#!{folder}/env/bin/python\n" + script.read_text().split("\n", 1)[1])
            own.chmod(0o755)
    start = f"exec {folder}/env/bin/python -m ipykernel_launcher --IPKernelApp.kernel_class=google.colab._kernel.Kernel"
    argv = ["sh", "-c", f'{start} -f "$0"', "{connection_file}"]
    if private:
        argv[2] = f"mount --bind {folder}/content /content && cd /content && {argv[2]}"
        argv[:0] = ["unshare", "-m"]
    spec = folder / "kernels/colab/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=argv, display_name="colab", language="python")))
    foreign = ("PYTHON", "JUPYTER", "VIRTUAL_ENV", "AMAZON_FT", "GRADIO")
    return {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | dict(
        PATH=f"{folder}/env/bin{os.pathsep}{os.environ['PATH']}", HOME=f"{folder}/home", TMPDIR=f"{folder}/tmp",
        PIP_ROOT_USER_ACTION="ignore", OMP_NUM_THREADS="1")


def noise(
    text: str,  # What a cell or the kernel said
) -> list:  # Of its lines, those that should not be there
    "Warnings and tracebacks."
    return [line for line in text.splitlines() if NOISE.search(line)]


def check_inline(
    nb,  # The page's notebook, its kernel still running
):
    "Its last output shows the page by Colab's proxy; nothing is public; the page answers."
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    script = outputs[-1]["data"]["application/javascript"]
    assert "google.colab.kernel.proxyPort" in script, script
    assert "gradio.live" not in str(outputs) and "public URL" not in str(outputs)
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
    nb, start, wrong = nbformat.read(path, as_version=4), time.perf_counter(), []
    for cell in nb.cells:
        before, after = (f"{BOX} = False", f"{BOX} = True") if drive else (get_config().user, FORK)
        if cell.get("id") == "colab-setup":
            cell.source = cell.source.replace(before, after)  # as Colab's form edits the source
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    client = NotebookClient(nb, timeout=900, kernel_name="colab", resources={"metadata": {"path": f"{folder}/content"}})
    client.create_kernel_manager()
    client.km.kernel_spec_manager.kernel_dirs.insert(0, f"{folder}/kernels")
    with open(folder / "stderr", "w+") as stderr:
        with client.setup_kernel(env=env, stderr=stderr):
            try:
                for i, cell in enumerate(nb.cells):
                    client.execute_cell(cell, i)
                if "page" in path.name:
                    check_inline(nb)
            except (CellExecutionError, AssertionError) as error:
                wrong.append(str(error)[-3000:])
        stderr.seek(0)
        wrong += noise(stderr.read())
    streams = [output for cell in nb.cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    wrong += [line for output in streams for line in noise(output.text)]
    strays = {file.name for file in (folder / "content").iterdir()} - SET_UP - {"drive" if drive else "amazon_ft_runs"}
    strays |= {file.name for file in (folder / "home").iterdir() if not file.name.startswith(".")}
    wrong += [f"written outside the workspace: {name}" for name in sorted(strays)]
    verdict = "FAILED" if wrong else "ok"
    where = "with Drive" if drive else "alone"
    print(f"{path.name}, {where}: {verdict}, {time.perf_counter() - start:.0f} s", *wrong, sep="\n", flush=True)
    return wrong


def main() -> int:
    "Each notebook alone, and beside that the stages in order on one Drive."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="Python of the environment that stands for Colab's")
    parser.add_argument("--only", nargs="+", default=["0"], help="how the names of the wanted notebooks begin")
    args = parser.parse_args()
    paths = sorted([*get_config().nbs_path.glob("[0-9][0-9]_*.ipynb"), get_config().nbs_path / "04b_page.ipynb"])
    paths = [path for path in paths if "pt-BR" not in path.name]  # the English page's code, which runs there
    paths = [path for path in paths if path.name.startswith(tuple(args.only))]
    with TemporaryDirectory() as tmp, private_content() as private:
        tmp = Path(tmp)
        copy, python = repository(tmp), image(tmp / "image", args.python)
        versions = "import platform as p, torch; print('Python', p.python_version(), 'torch', torch.__version__)"
        print(output_of(python, "-c", versions))
        drive = tmp / "drive"
        drive.mkdir()
        own = dict(STAND_IN_DRIVE=str(drive), PIP_CACHE_DIR=str(tmp / "pip"))

        def opened(path, on_drive):
            folder = tmp / ("ordered" if on_drive else "alone") / path.stem
            env = machine(folder, tmp / "image", args.python, private) | own
            env |= found_at(copy, get_config().user if on_drive else FORK)
            wrong = run_all(path, folder, env, on_drive)
            shutil.rmtree(folder)
            return wrong

        stages = [path for path in paths if path.name.startswith(STAGES)] if private else []
        with ThreadPoolExecutor(2) as both:
            in_order = both.submit(lambda: [opened(path, True) for path in stages])
            alone = [both.submit(opened, path, False) for path in paths if path not in stages or "page" in path.name]
            results = [one.result() for one in alone] + in_order.result()
        if not private:
            print("not checked, there is no /content of one's own here: with Drive")
        strays = {file.name for file in drive.iterdir()} - {"amazon_ft"}
        print(f"{sum(not wrong for wrong in results)} of {len(results)} runs are in order", *strays)
    return 1 if strays or any(results) else 0


if __name__ == "__main__":
    sys.exit(main())
