"""Ask every console script for help, then give it a wrong argument: one sentence, exit code 2, nothing written.

Usage: python tools/try_scripts.py [--bin FOLDER]      FOLDER holds the scripts, by default this Python's
Which scripts there must be stands in settings.ini.
"""
import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory

TRACED = {"PYTHONPROFILEIMPORTTIME": "1"}  # Python then names on standard error what it imports
OUT_OF_BOUNDS = {  # an option of each script with a value that it must not take, after the arguments that it needs
    "amazon_ft_prepare": ("--n_valid", "-1"),
    "amazon_ft_train": ("--max_steps", "0"),
    "amazon_ft_merge": ("--root", "nowhere"),
    "amazon_ft_eval": ("--k", "0"),
    "amazon_ft_compare": ("tiny", "tiny", "--k", "0"),
    "amazon_ft_generate": ("--max_new_tokens", "0"),
    "amazon_ft_demo": ("--port", "0"),
    "amazon_ft_quickstart": ("--k", "0"),
    "amazon_ft_push": ("--what", "everything"),
    "amazon_ft_export": ("--quant", "Q4_K_M"),
}


def run(
    script: Path,  # A console script
    *arguments: str,
    **environment: str,  # Variables besides those of this process
) -> tuple:  # Exit code, standard output, standard error, names of what it left behind
    "Run a script in an empty folder."
    with TemporaryDirectory() as folder:
        done = subprocess.run([script, *arguments], cwd=folder, text=True, capture_output=True, timeout=600,
                              stdin=subprocess.DEVNULL, env=os.environ | environment)
        return done.returncode, done.stdout, done.stderr, [path.name for path in Path(folder).iterdir()]


def complaints(
    script: Path,  # A console script
) -> list:
    "What is wrong with a script's help and with its answers to wrong arguments."
    code, out, err, written = run(script, "--help", **TRACED)
    imported = re.findall(r"^import time:.*\| +(\S+)\n", err, re.M)
    err, found = re.sub(r"^import time:.*\n", "", err, flags=re.M), []
    if code or err or written or not out.startswith("usage: "):
        found.append(f"--help: exit code {code}, wrote {written}: {out[:200]}{err[-500:]}")
    if "argparse" not in imported or "torch" in imported:
        found.append(f"--help imported {len(imported)} modules, torch among them or argparse not")
    *needed, option, value = OUT_OF_BOUNDS[script.name]
    for wrong in ((option, value), ("--no_such_option", "1")):
        code, out, err, written = run(script, *needed, *wrong)
        sentence = re.fullmatch(r"(usage: .*\n)?\w+: [^\n]+\n", err, re.S)
        if code != 2 or written or not sentence or wrong[0] not in err:
            found.append(f"{' '.join(wrong)}: exit code {code}, wrote {written}: {out[:200]}{err[-500:]}")
    print(f"{script.name}: {'ok' if not found else 'FAILED'}", *found, sep="\n", flush=True)
    return found


def main() -> int:
    "Every script that settings.ini names."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="folder of the console scripts")
    folder = parser.parse_args().bin.absolute()
    config = ConfigParser(delimiters=["="])
    config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
    names = [entry.split("=")[0] for entry in config["DEFAULT"]["console_scripts"].split()]
    with ThreadPoolExecutor(2) as pool:
        return 1 if any(list(pool.map(complaints, [folder / name for name in names]))) else 0


if __name__ == "__main__":
    sys.exit(main())
