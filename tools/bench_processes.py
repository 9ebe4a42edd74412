"""Training steps on several GPUs of one machine: the same rows and the same step, in 1, 2, ... processes.

    python tools/bench_train.py --make MODEL --tokenizer TOKENIZER
    python tools/bench_processes.py --model MODEL --processes 0,1,2,4 --examples 16,64 --out nbs/bench/processes.json

Model and rows are those of bench_train.py. 0 processes stands for the command without a launcher, 1 for the path of
several with one process. All runs of a call share the machine; each is started anew. Loss and gradient norm are means
over the first ten steps, at a constant learning rate, so they agree whatever the number of processes. `--out` adds to
what the file holds, under `PROCESSES x EXAMPLES`. With `--titles 10000` a catalogue is described instead, from loaded
model to gathered texts. Without a GPU everything runs on the CPU, with Gloo: for trying out.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from pathlib import Path

from bench_train import COMPARED, PROFILED, SCRATCH, _versions, clock, kinds, make_rows, now

REDUCED = 30  # all-reduces alone, after the run


def rows_for(model, n):
    "bench_train.py's rows, in the model's vocabulary."
    from transformers import AutoConfig
    words = AutoConfig.from_pretrained(model).vocab_size - 3
    rows = make_rows(n)
    for row in rows:
        row["input_ids"] = [3 + (i - 3) % words for i in row["input_ids"]]
        row["labels"] = [i if i == -100 else 3 + (i - 3) % words for i in row["labels"]]
    return rows


def imbalance(rows, examples, n):
    "Tokens of a step's fullest process over the mean, on average."
    from amazon_ft.processes import deal
    lengths = [len(row["input_ids"]) for row in rows]
    found = []
    for i in range(0, len(lengths), examples):
        step = lengths[i:i + examples]
        heaviest = max(sum(step[k] for k in hand) for hand in deal(step, n))
        found.append(heaviest * n / sum(step))
    return sum(found) / len(found)


def trainer_for(model, rows, examples, steps):
    "Our trainer for these rows, in their order."
    import torch
    from datasets import Dataset
    from amazon_ft.models import hardware_precision, load_model, load_tokenizer
    from amazon_ft.step import Execution
    from amazon_ft.train import build_trainer, lora_config, sft_config
    precision, gpu = hardware_precision(), torch.cuda.is_available()
    config = sft_config(SCRATCH, precision, steps, 1e-4, examples, save_steps=0, seed=0)
    for name, value in dict(lr_scheduler_type="constant", warmup_steps=0, logging_steps=25,
                            train_sampling_strategy="sequential").items():
        setattr(config, name, value)
    base = load_model(model, precision, four_bit=True).dequantize()
    data = Dataset.from_list(rows)
    return build_trainer(base, load_tokenizer(model), data, data.take(16), lora_config(), config,
                         Execution(False, 16 * 512, gpu, gpu and precision == "bf16"))


def all_reduce_ms(tensor):
    "Milliseconds of an all-reduce of this tensor, nothing else going on."
    from amazon_ft.processes import add_up, barrier
    for i in range(REDUCED + 5):
        if i == 5:
            barrier()
            start = now()
        tensor.zero_()
        add_up(tensor)
    return (now() - start) / REDUCED * 1000


def measure(model, n, examples, steps):
    "Run in this process, one of `n`; the main one prints a line of JSON."
    from amazon_ft.processes import is_main, joined
    with joined():
        import torch
        from amazon_ft.artefacts import hardware
        warm = steps // 2
        total = steps + PROFILED * torch.cuda.is_available()
        rows = rows_for(model, examples * total)
        began = time.perf_counter()
        trainer = trainer_for(model, rows, examples, total)
        trainer.add_callback(timer := clock(steps, warm))
        trainer.train()
        alone = all_reduce_ms(trainer.step.sums) if n else None
        tokens = sum(len(row["input_ids"]) for row in rows[warm * examples:steps * examples])
        first = [log for log in trainer.state.log_history if log.get("step", 99) <= COMPARED and "loss" in log]
        mean = {name: sum(float(log[name]) for log in first) / len(first) for name in ("loss", "grad_norm")}
        result = dict(
            processes=n, examples=examples, steps=steps - warm,
            seconds_a_step=(timer.end - timer.start) / (steps - warm),
            tokens_per_s=tokens / (timer.end - timer.start), **mean, warm_up_s=timer.start - began,
            imbalance=imbalance(rows, examples, max(1, n)), all_reduce_ms=alone,
            all_reduce_mb=trainer.step.sums.numel() * 4 / 1e6, shapes=len(trainer.step.recordings),
            hardware=hardware(), versions=_versions("ours"))
        if timer.profiler:
            result["profile_ms"] = kinds(timer.profiler, PROFILED)
            result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if is_main():
            print("RESULT " + json.dumps(result), flush=True)


def describe(model, n, titles):
    "Time a catalogue's titles from loaded model to gathered texts, and print as `measure` does."
    from amazon_ft.processes import barrier, is_main, joined
    with joined():
        from amazon_ft import demo
        from amazon_ft.core import QUESTION
        from amazon_ft.artefacts import hardware
        made_up = [f"Product {i} of steel and oak, {i % 97} inches" for i in range(titles)]
        began = time.perf_counter()
        demo.describe(model, made_up[:4], max_new_tokens=8)
        parts = Path(os.environ["PARTS"])
        barrier()
        start = now()
        texts = demo._describe_in_parts(parts, demo._part_rows(titles), model, made_up, QUESTION, 256, {})
        barrier()
        seconds = now() - start
        if is_main():
            print("RESULT " + json.dumps(dict(
                processes=n, titles=len(texts), seconds=seconds, titles_per_s=titles / seconds, load_s=start - began,
                hardware=hardware(), versions=_versions("ours"))), flush=True)


def launch(n, examples, args):
    "Measure in `n` processes; the result, or None after a word of what went wrong."
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(n)] if n else []
    command = [sys.executable, *launcher, __file__, "--model", str(args.model), "--processes", str(n),
               "--examples", str(examples), "--steps", str(args.steps), "--titles", str(args.titles), "--one"]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root]))
    with tempfile.TemporaryDirectory() as parts:
        done = subprocess.run(command, env=environment | {"PARTS": parts}, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    print(f"{n} x {examples}: failed\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}", flush=True)


def main():
    "Measure each number of processes at each size of a step."
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the model's folder")
    parser.add_argument("--processes", default="0,1,2", help="how many, by comma; 0 is without a launcher")
    parser.add_argument("--examples", default="16,64", help="examples a step, by comma")
    parser.add_argument("--steps", type=int, default=300, help="steps; the second half is timed")
    parser.add_argument("--titles", type=int, default=0, help="describe so many titles instead of training")
    parser.add_argument("--one", action="store_true", help="measure in this very process")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    args = parser.parse_args()
    pairs = [(int(n), int(e)) for e in args.examples.split(",") for n in args.processes.split(",")]
    if args.one and args.titles:
        return describe(str(args.model), pairs[0][0], args.titles)
    if args.one:
        return measure(str(args.model), *pairs[0], args.steps)
    for n, examples in pairs:
        if not (result := launch(n, examples, args)):
            continue
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in result.items() if k != "versions"}
        print(json.dumps(shown), flush=True)
        if args.out:
            results = json.loads(args.out.read_text()) if args.out.exists() else {}
            results[f"{n} x {args.titles} titles" if args.titles else f"{n} x {examples}"] = result
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
