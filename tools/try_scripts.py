"""Ask every console script for help, then give it a wrong argument: one sentence, exit code 2, nothing written.

Usage: python tools/try_scripts.py [--bin FOLDER]      FOLDER holds the scripts, by default this Python's
Which scripts there must be stands in settings.ini.
"""
import argparse
import re
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path
from tempfile import TemporaryDirectory

HELP_SECONDS = 3  # a script that imports torch before it knows its arguments takes longer
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
) -> tuple:  # Exit code, standard output, standard error, seconds, names of what it left behind
    "Run a script in an empty folder."
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = subprocess.run([script, *arguments], cwd=folder, text=True, capture_output=True, timeout=120,
                              stdin=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        return done.returncode, done.stdout, done.stderr, seconds, [path.name for path in Path(folder).iterdir()]


def complaints(
    script: Path,  # A console script
) -> list:
    "What is wrong with a script's help and with its answers to wrong arguments."
    code, out, err, seconds, written = run(script, "--help")
    found = []
    if code or err or written or not out.startswith("usage: "):
        found.append(f"--help: exit code {code}, wrote {written}: {out[:200]}{err[-500:]}")
    if seconds > HELP_SECONDS:
        found.append(f"--help took {seconds:.1f} s")
    *needed, option, value = OUT_OF_BOUNDS[script.name]
    for wrong in ((option, value), ("--no_such_option", "1")):
        code, out, err, _, written = run(script, *needed, *wrong)
        sentence = re.fullmatch(r"(usage: .*\n)?\w+: [^\n]+\n", err, re.S)
        if code != 2 or written or not sentence or wrong[0] not in err:
            found.append(f"{' '.join(wrong)}: exit code {code}, wrote {written}: {out[:200]}{err[-500:]}")
    print(f"{script.name}: {'ok' if not found else 'FAILED'}, help in {seconds:.1f} s", *found, sep="\n", flush=True)
    return found


def main() -> int:
    "Every script that settings.ini names."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="folder of the console scripts")
    folder = parser.parse_args().bin.absolute()
    config = ConfigParser(delimiters=["="])
    config.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
    names = [entry.split("=")[0] for entry in config["DEFAULT"]["console_scripts"].split()]
    return 1 if any([complaints(folder / name) for name in names]) else 0


if __name__ == "__main__":
    sys.exit(main())
