"""Describe 2,000 products in one process, in two, and on Ray with two actors: the same texts, whatever dies on the way.
Evaluate in one process and in two: the same files.

Usage: python tools/try_ray.py [--bin FOLDER] [--rows 2000]
FOLDER holds the console scripts, by default it is this Python's.
Needs the extra (pip install ".[ray]") where the scripts are. A tiny model is trained for a few steps; the titles are
those of the embedded catalogue. One Ray run loses an actor in its midst, another is interrupted and started again.
"""
import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import psutil

BLOCK_ROWS, CAP, STEPS, PATIENCE_S = 250, 16, 30, 1200
ENVIRONMENT = os.environ | dict(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", TQDM_DISABLE="1")


def run(*command) -> str:
    "A command's standard output; a failure ends the check."
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE_S)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


@contextmanager
def started(command: list, out: Path, blocks: int):
    "A Ray run, once it has finished so many blocks."
    with open(out.with_suffix(".log"), "w+") as log:
        hears = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit deaf ears
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=ENVIRONMENT, preexec_fn=hears)
        since = time.monotonic()
        while len(list(out.glob("0*.parquet"))) < blocks and process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - since > PATIENCE_S:
                process.kill()
        try:
            yield process, log
        finally:
            if process.poll() is None:
                process.kill()


def ended(process, log) -> str:
    "Exit code and all that a run has said."
    code = process.wait(PATIENCE_S)
    log.seek(0)
    return f"{log.read()}\nexit code {code}"


def kill_actor(process):
    "Kill one of a run's actors."
    actors = [p for p in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in " ".join(p.cmdline())]
    assert len(actors) == 2, f"{len(actors)} actors"
    actors[0].kill()


def check(name: str, holds: bool, said: str = ""):
    "Report, and end at the first failure."
    print(f"{name}: {'ok' if holds else 'FAILED'}", flush=True)
    if not holds:
        sys.exit(said[-4000:])


def main():
    "Make a model, describe in every way, compare."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="folder of the console scripts")
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        work, script = Path(folder), lambda name: args.bin / f"amazon_ft_{name}"
        root = ["--root", work / "runs"]
        run(script("prepare"), "--source", "sample", *root)
        run(script("train"), "--base", "tiny", "--max_steps", STEPS, *root)
        run(script("merge"), *root)

        sample = Path(__file__).resolve().parent.parent / "amazon_ft/assets/sample/trn.json.gz"
        table = pd.read_json(sample, lines=True, dtype=str)[["uid", "title"]].head(args.rows)
        (work / "titles").mkdir()
        table.to_csv(work / "titles.csv", index=False)
        cut = len(table) * 2 // 3
        table[:cut].to_csv(work / "titles/a.csv", index=False)
        table[cut:].to_parquet(work / "titles/b.parquet", index=False)
        generate = [script("generate"), *root, "--max_new_tokens", CAP]

        plain, two = work / "plain.csv", work / "two.csv"
        start = time.monotonic()
        run(*generate, "--source", work / "titles.csv", "--out", plain)
        print(f"one process: {len(table)} rows in {time.monotonic() - start:.0f} s")
        launcher = [args.bin / "torchrun", "--standalone", "--no-python", "--nproc_per_node", 2]
        start = time.monotonic()
        run(*launcher, *generate, "--source", work / "titles.csv", "--out", two)
        print(f"two processes: {time.monotonic() - start:.0f} s")
        check("two processes write the file of one", plain.read_bytes() == two.read_bytes())

        evaluation = [script("eval"), *root, "--k", 12, "--max_new_tokens", CAP]
        run(*evaluation)
        files = {file.name: file.read_bytes() for file in (work / "runs/outputs").glob("*_quick.*")}
        shutil.rmtree(work / "runs/cache/predictions")
        said = run(*launcher, *evaluation)
        again = {file.name: file.read_bytes() for file in (work / "runs/outputs").glob("*_quick.*")}
        differ = [name for name in files if files[name] != again.get(name)]
        name = f"two processes evaluate as one does, {len(files)} files"
        check(name, len(files) > 2 and not differ, f"{differ}\n{said}")

        expected = pd.read_csv(plain, dtype=str, keep_default_na=False)
        same = lambda out: pd.read_parquet(out).astype(str).reset_index(drop=True).equals(expected)
        on_ray = [*generate, "--ray", "--actors", 2, "--block_rows", BLOCK_ROWS, "--source", work / "titles", "--out"]
        start, out = time.monotonic(), work / "killed"
        with started([*on_ray, out], out, 2) as (process, log):
            kill_actor(process)
            said = ended(process, log)
        print(f"on Ray, an actor killed: {time.monotonic() - start:.0f} s")
        check("it ends all the same", "exit code 0" in said and f"{len(table)} rows described" in said, said)
        check("with the texts of the plain command", same(out), said)

        out = work / "resumed"
        with started([*on_ray, out], out, 2) as (process, log):
            process.send_signal(signal.SIGINT)
            said = ended(process, log)
        check("an interrupted run says so", "exit code 130" in said and "run the same command again" in said, said)
        before = len(list(out.glob("0*.parquet")))
        said = run(*on_ray, out)
        check("its successor does the rest", f"{before} of them from before" in said and before > 1, said)
        check("and the texts are those of the plain command", same(out), said)


if __name__ == "__main__":
    main()
