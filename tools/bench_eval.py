"""How fast evaluation is: scoring on this machine's CPU, and with `--model` generation on its GPU.

    python tools/bench_eval.py --rows 1000
    python tools/bench_eval.py --make MODELS --tokenizer TOKENIZER
    python tools/bench_eval.py --model MODELS --k 1000 --out nbs/bench/eval.json
    python tools/bench_eval.py --rows 0 --command WORKSPACE --base BASE --out nbs/bench/eval.json

Run from the repository's root with PYTHONPATH set to it; nothing is downloaded. Rows and titles are made up: lengths of
descriptions lognormal with a mean of about a hundred words, words drawn by Zipf's law. `--make` writes two models of
TinyLlama-1.1B's shape with random weights to MODELS/base and MODELS/tuned. Such models never stop by themselves, so
that every answer runs to the cap: the worst case. One-by-one generation is timed on a few titles in the same run.
`--command` merges what `bench_train.py --cold WORKSPACE` trained and times the whole command amazon_ft_eval on two
cores.
"""
import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from time import perf_counter

import numpy as np

from amazon_ft.artefacts import hardware, versions
from amazon_ft.core import chat, target_text, without_prefix
from amazon_ft.generate import batch_rows, generate
from amazon_ft.models import load_model, load_tokenizer


def make_texts(n: int, mean_words: int, seed: int):
    "Made-up descriptions."
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("aeioulnrstdkm"), size)) for size in rng.integers(2, 10, 20_000)])
    lengths = np.maximum(3, rng.lognormal(np.log(mean_words) - 0.5, 1.0, n)).astype(int)
    return [" ".join(words[np.minimum(rng.zipf(1.3, length), 20_000) - 1]) for length in lengths]


def time_scoring(rows: int, repeats: int) -> dict:
    "Seconds for all measures and statistics of seven systems, as `evaluate` takes them; the best of some repeats."
    import pandas as pd
    from amazon_ft.evaluate import nearest_titles, summarise
    from amazon_ft.measures import memorised
    from amazon_ft.scoring import measure
    from amazon_ft.report import conclusions, plot_evaluation, report
    references, training = make_texts(rows, 105, 0), make_texts(10_000, 105, 1)
    titles, known = make_texts(rows, 9, 2), make_texts(10_000, 9, 3)
    words = 180 # what 256 tokens hold
    written = {name: [" ".join(text.split()[:words]) for text in make_texts(rows, 150, seed)]
               for seed, name in enumerate(("base", "base, 3 examples", "tuned"), 4)}
    texts = {"copy of the title": titles, "another product's description": references[1:] + references[:1],
             "nearest training title": training[:rows], "reference": references} | written
    rng = np.random.default_rng(0)
    table = pd.concat([pd.DataFrame(dict(
        uid="", title=titles, question="What is the full description?", reference=references, system=name,
        prediction=[target_text(text) for text in found], new_tokens=rng.integers(1, 257, rows),
        reference_tokens=rng.integers(1, 400, rows), nll_token=rng.normal(2, 0.3, rows),
        nll_char=rng.normal(0.5, 0.1, rows), stopped=rng.integers(0, 2, rows).astype(float),
        prefixed=rng.integers(0, 2, rows).astype(float)))
        for name, found in texts.items()], ignore_index=True)
    best = None
    for _ in range(repeats):
        marks = {"start": perf_counter()}
        nearest_titles(titles, known)
        marks["nearest_titles"] = perf_counter()
        measured = measure(table)
        texts = list(map(without_prefix, measured["prediction"]))
        measured["memorised"] = memorised(texts, training)
        marks["measure"] = perf_counter()
        metrics = summarise(measured) | dict(
            k=rows, base="bench", references_beyond_cap=0.2, hardware="", data="", merged_identity="", seed=0,
            preference=dict(votes=0), lead="rougeL", decoding=dict(
                name="greedy", rules={}, precision="fp16", max_new_tokens=256, batch_size=512))
        marks["summarise"] = perf_counter()
        conclusions(metrics)
        plot_evaluation(metrics, measured)
        report(metrics, measured)
        marks["report"] = perf_counter()
        seconds = dict(zip(list(marks)[1:], np.diff(list(marks.values())).round(2).tolist()))
        seconds["all"] = round(sum(seconds.values()), 2)
        best = seconds if best is None or seconds["all"] < best["all"] else best
    return best


def make_models(folder: Path, tokenizer: Path):
    "Two models of TinyLlama-1.1B's shape with random weights, float16."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
                         num_key_value_heads=4, vocab_size=32_000, max_position_embeddings=2048, bos_token_id=1,
                         eos_token_id=2, pad_token_id=2)
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
        model.to(torch.float16).save_pretrained(folder / name)
        for file in Path(tokenizer).iterdir():
            if file.is_file() and file.name != "config.json":
                shutil.copyfile(file, folder / name / file.name)


def time_generation(folder: Path, k: int, one: int, max_new_tokens: int, batch_size: int) -> dict:
    "Seconds to describe `k` titles with both models in batches, and one by one on the first `one` titles."
    import torch
    chats = [chat(" ".join(title.split()[:30])) for title in make_texts(k, 9, 7)]
    seconds, sizes = {}, {}
    for name in ("base", "tuned"):
        start = perf_counter()
        model, tokenizer = load_model(str(folder / name), "fp16"), load_tokenizer(str(folder / name))
        seconds[f"{name}, load"] = perf_counter() - start
        start = perf_counter()
        sizes[name] = [p.n_tokens for p in generate(model, tokenizer, chats, max_new_tokens, batch_size)]
        seconds[f"{name}, generate"] = perf_counter() - start
    start = perf_counter()
    for asked in chats[:one]:
        generate(model, tokenizer, [asked], max_new_tokens)
    each = (perf_counter() - start) / one
    both = seconds["base, generate"] + seconds["tuned, generate"]
    return dict(k=k, max_new_tokens=max_new_tokens, batch_rows=batch_size or batch_rows(),
                seconds={name: round(s, 2) for name, s in seconds.items()},
                generate_both=round(both, 2), new_tokens=sum(map(sum, sizes.values())),
                one_by_one=dict(titles=one, seconds_each=round(each, 3), extrapolated=round(2 * k * each, 1)),
                times_faster=round(2 * k * each / both, 1),
                peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None)


def time_command(base: str, root: Path, k: int, max_new_tokens: int) -> dict:
    "Seconds of amazon_ft_merge, and of amazon_ft_eval on two cores, each in a process of its own."
    def run(module, name, *arguments):
        command = [sys.executable, "-c", f"from amazon_ft.{module} import amazon_ft_{name} as f; f()",
                   "--base", base, "--root", str(root), *arguments]
        start = perf_counter()
        subprocess.run(command, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        return round(perf_counter() - start, 1)
    merge = run("merge", "merge", "--decoding", "greedy")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    seconds = run("evaluate", "eval", "--k", str(k), "--max_new_tokens", str(max_new_tokens))
    os.sched_setaffinity(0, cores)
    return dict(hardware=hardware(), k=k, max_new_tokens=max_new_tokens, merge=merge, seconds=seconds)


def main():
    "Time what was asked for and print one JSON."
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="rows to score; 0 skips scoring")
    parser.add_argument("--repeats", type=int, default=1, help="of the scoring; the best counts")
    parser.add_argument("--make", type=Path, help="folder to write two models with random weights to, and end")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer that they get")
    parser.add_argument("--model", type=Path, help="folder made by --make: time generation with its models")
    parser.add_argument("--command", type=Path, help="workspace of `bench_train.py --cold`: time amazon_ft_eval on it")
    parser.add_argument("--base", help="the base that was trained there, for --command")
    parser.add_argument("--k", type=int, default=1000, help="titles to describe")
    parser.add_argument("--one", type=int, default=20, help="titles to describe one by one")
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--batch_size", type=int, help="prompts at a time (default: batch_rows)")
    parser.add_argument("--out", type=Path, help="JSON file to add the results to")
    args = parser.parse_args()
    if args.make:
        make_models(args.make, args.tokenizer)
        if not args.model:
            return
    found = dict(hardware=hardware(), versions=versions()) if args.model or args.command else {}
    if args.command:
        found["command"] = time_command(args.base, args.command, args.k, args.max_new_tokens)
    if args.rows:
        found["scoring"] = dict(rows=args.rows, hardware=f"CPU, {os.cpu_count()} cores",
                                seconds=time_scoring(args.rows, args.repeats))
    if args.model:
        found["generation"] = time_generation(args.model, args.k, args.one, args.max_new_tokens, args.batch_size)
    print(json.dumps(found, indent=2))
    if args.out:
        before = json.loads(args.out.read_text()) if args.out.exists() else {}
        args.out.write_text(json.dumps(before | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
