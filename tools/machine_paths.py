"""Find paths of this machine in the repository's files: they betray whoever ran it and hold nowhere else.

Usage: python tools/machine_paths.py        every file that git tracks; notebooks cell by cell
"""
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERYWHERE = ("/dev/null", "/proc/", "/usr/bin/env", "/content")  # any Linux; Colab's own folder


def pattern() -> re.Pattern:
    "Absolute paths below any folder at the root of this machine, homes on any machine, and this machine's name."
    tops = "|".join(re.escape(name) for name in sorted(os.listdir("/")))
    host = socket.gethostname()
    name = rf"|\b{re.escape(host)}\b" if len(host) > 5 and host != "localhost" else ""
    return re.compile(rf"(?<![\w.:/~$}})>*-])/(?:{tops}|home|Users)/[\w.-][^\s'\"`<>]*{name}")


def machine_paths(
    text: str,  # Any text
) -> list:  # The paths found in it
    "Paths in `text` that belong to one machine."
    return [path for path in pattern().findall(text) if not path.startswith(EVERYWHERE)]


def output_texts(
    output: dict,  # One output of a notebook's code cell
) -> list:  # Its texts; pictures are left out
    "Everything in a cell's output that a reader can read."
    data = [value for mime, value in output.get("data", {}).items() if not mime.startswith("image/")]
    parts = [output.get("text", ""), output.get("evalue", ""), *data]
    return [part if isinstance(part, str) else "".join(map(str, part)) for part in parts]


def texts(
    path: Path,  # A tracked file
):  # Pairs of where and text
    "The readable texts of a file: one for a text file, two a cell for a notebook, none for a binary file."
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    if path.suffix != ".ipynb":
        yield path.name, text
        return
    for i, cell in enumerate(json.loads(text)["cells"]):
        yield f"cell {i}", "".join(cell["source"])
        yield f"cell {i}, output", "\n".join(t for output in cell.get("outputs", []) for t in output_texts(output))


def main() -> int:
    "Print what was found; 1 if anything was."
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    found = [
        f"{name}: {where}: {path}"
        for name in filter(None, names.split("\0"))
        if (ROOT / name).is_file()
        for where, text in texts(ROOT / name)
        for path in machine_paths(text)
    ]
    print("\n".join(found) if found else "no machine paths")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
