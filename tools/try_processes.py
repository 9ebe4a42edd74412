"""Train with one process and with two, and compare; kill one of two, and resume with one and with two.

Usage: python tools/try_processes.py
Runs on CPUs (Gloo), the embedded base, in temporary workspaces. Three rounds; in each, runs of one process go beside
runs of two that `torchrun` starts. Losses and gradients agree to 1e-5, adapters to 1e-4, dropout included.
"""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

RUNS = {  # settings of the runs that are compared
    "even": dict(batch_size=8, max_steps=6, save_steps=2, learning_rate=3e-3),
    "uneven": dict(batch_size=3, max_steps=4, save_steps=0, learning_rate=3e-3, seed=7),
    "fewer": dict(batch_size=1, max_steps=3, save_steps=0, learning_rate=3e-3),  # than processes
}
DIES_AT = 5  # steps of the run "even", whose checkpoints are at 2, 4 and 6
LIMIT_S = 1200


def options(settings: dict) -> list:
    "Settings as a command line has them."
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def command(case: str, root: Path):
    "amazon_ft_train as typed, for a workspace of its own."
    from amazon_ft.train import amazon_ft_train
    sys.argv = ["amazon_ft_train", "--base", "tiny", "--root", str(root), *options(RUNS[case])]
    with patch("amazon_ft.train.VALIDATION_ROWS", 6):
        amazon_ft_train()


def dying(rank: int, error):
    "A `Step` that ends this process at a step of its own choice: raises `error`, or kills the process of this rank."
    from amazon_ft import processes, step
    taken, real = [], step.Step.__call__
    def call(self, *args, **kwargs):
        taken.append(1)
        if len(taken) == DIES_AT and error:
            raise error
        if len(taken) == DIES_AT and processes.rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args, **kwargs)
    return patch.object(step.Step, "__call__", call)


def gradients(folder: Path):
    "Save the loss and the gradients of a step of five examples, with dropout, and the number of processes."
    import numpy as np
    import torch
    from peft import get_peft_model
    from amazon_ft.artefacts import load_prepared
    from amazon_ft.models import encode, known_noise, load_model, load_tokenizer
    from amazon_ft.processes import is_main, joined, world
    from amazon_ft.step import Execution, Step
    from amazon_ft.train import lora_config
    with joined(), known_noise():
        rows = load_prepared(folder / "prepared")[0]["train"][:5]
        encoded = encode(rows, load_tokenizer("tiny"))
        examples = [{name: np.array(column[i]) for name, column in encoded.items()} for i in range(5)]
        torch.manual_seed(0)
        model = get_peft_model(load_model("tiny", "fp32", four_bit=True), lora_config()).train()
        for weight in model.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.03)
        step = Step(model, "fp32", Execution(True, 500, False, False))
        step(examples, seed=3)
        validation = step.validation_loss(examples)
        if is_main():
            torch.save(dict(sums=step.sums, validation=validation), folder / f"gradients_{world()}.pt")


def worker(job: str, folder: Path):
    "The runs of one round, in this process or in both."
    name = job[-1]
    if job.startswith("undisturbed"):
        gradients(folder)
        for case in RUNS:
            command(case, folder / f"{case}_{name}")
    if job == "stopped_1":
        with dying(0, KeyboardInterrupt()):
            command("even", folder / "stopped")
    if job == "killed_2":
        with dying(1, None):
            command("even", folder / "killed")
    if job == "resumed_1":
        command("even", folder / "killed_resumed_1")
    if job == "resumed_2":
        for root in ("killed_resumed_2", "stopped_resumed_2"):
            command("even", folder / root)


def start(job: str, folder: Path):
    "A job in the number of processes that its name ends with; workspaces are there before the processes start."
    new = {"undisturbed": [f"{case}_{job[-1]}" for case in RUNS], "stopped": ["stopped"], "killed": ["killed"]}
    for root in new.get(job.split("_")[0], []):
        shutil.copytree(folder / "prepared", folder / root)
    launcher = [] if job.endswith("1") else [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", job[-1]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    log = open(folder / f"{job}.log", "w")
    return subprocess.Popen([sys.executable, *launcher, __file__, "--worker", job, str(folder)], stdout=log,
                            stderr=subprocess.STDOUT, env=environment, start_new_session=True)


def finish(process, job: str, folder: Path) -> tuple:
    "Exit code and output of a job; one that takes too long is killed."
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = "none, it hung"
    return code, (folder / f"{job}.log").read_text()


def adapter(root: Path) -> tuple:
    "The weights of a run's adapter, and its log."
    import pandas as pd
    from safetensors.torch import load_file
    from amazon_ft.core import paths
    where = paths("tiny", root)
    return load_file(where.adapter / "adapter_model.safetensors"), pd.read_csv(where.run / "log.csv")


def apart(found: Path, wanted: Path) -> str:
    "How far two runs are apart, and an exclamation mark if that is too far."
    (weights, log), (other, expected) = adapter(found), adapter(wanted)
    distance = max(float((weights[name] - other[name]).abs().max()) for name in other)
    columns = [name for name in ("loss", "eval_loss", "grad_norm") if name in expected]
    log, expected = (table[columns].dropna(how="all") for table in (log, expected))
    losses = float((log / expected - 1).abs().max().max()) if log.shape == expected.shape else float("inf")
    verdict = "" if distance < 1e-4 and losses < 1e-5 and log.notna().equals(expected.notna()) else " !"
    return f"{found.name} and {wanted.name}: adapter {distance:.1e}, losses and norms {losses:.1e}{verdict}"


def compared_gradients(folder: Path) -> str:
    "How far gradients of two processes are from those of one."
    import torch
    one, two = (torch.load(folder / f"gradients_{n}.pt") for n in (1, 2))
    distance = float((two["sums"] - one["sums"]).norm() / one["sums"].norm())
    validation = abs(two["validation"] / one["validation"] - 1)
    return f"gradients: {distance:.1e}, validation loss {validation:.1e}" + " !" * (max(distance, validation) > 1e-5)


def rounds(folder: Path):
    "All runs; yields a line for each finding, with an exclamation mark if it is not as it should be."
    from amazon_ft.data import prepare
    prepare("sample", root=str(folder / "prepared"))
    for jobs in (("undisturbed_1", "undisturbed_2"), ("stopped_1", "killed_2"), ("resumed_1", "resumed_2")):
        if jobs[0] == "resumed_1":
            for source, target in (("killed", "killed_resumed_1"), ("killed", "killed_resumed_2"),
                                   ("stopped", "stopped_resumed_2")):
                shutil.copytree(folder / source, folder / target)
        running = [(job, start(job, folder)) for job in jobs]
        for job, process in running:
            code, said = finish(process, job, folder)
            written = {"undisturbed": len(RUNS), "resumed": int(job[-1])}.get(job[:-2], 0)  # said by one process alone
            fine = code == {"stopped_1": 130, "killed_2": 1}.get(job, 0) and said.count("train: wrote") == written
            if job == "killed_2":
                fine = fine and "Signal 9 (SIGKILL)" in said and "Error:" not in said.replace("ChildFailedError:", "")
            yield f"{job}: exit {code}" + ("" if fine else f" !\n{said[-3000:]}")
    yield compared_gradients(folder)
    for case in RUNS:
        yield apart(folder / f"{case}_2", folder / f"{case}_1")
    for name in ("killed_resumed_1", "killed_resumed_2", "stopped_resumed_2"):
        yield apart(folder / name, folder / "even_1")


def main():
    began = time.perf_counter()
    if sys.argv[1:2] == ["--worker"]:
        return worker(sys.argv[2], Path(sys.argv[3]))
    failed = 0
    with TemporaryDirectory() as tmp:
        for line in rounds(Path(tmp)):
            failed += " !" in line
            print(line, flush=True)
    print(f"{failed} failed, {time.perf_counter() - began:.0f} s")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
