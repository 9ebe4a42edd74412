"""What a real model learns from real products: settings compared on validation rows, the chosen one on test rows.

    python tools/real_base.py BASE
    python tools/bench_real.py --base BASE --source 'rows/*.jsonl.gz' --work WORK --out nbs/bench/real.json

Run from the repository's root with PYTHONPATH set to it. Every setting is a process of its own, some at a time on one
GPU; each is judged on the same validation rows by likelihood and by the texts it writes. One process trains, merges
and evaluates the chosen setting as a user does, and is the only one that looks at test rows. No text of a row goes to
--out. `--trial` takes two settings, two steps and few rows, to see that everything runs.
"""
import json
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path

DATA = {  # arguments of prepare, and the words that a description must have where that is not the default
    "default": {}, "six wordings": dict(question="varied"), "unfiltered": dict(min_words=0),
    "10 words": dict(min_words=10), "30 words": dict(min_words=30), "verbatim": dict(no_clean=True)}
RECIPE = dict(learning_rate=1e-4, max_steps=600, rank=32, nf4=True, data="default", neighbour=False)
FASTER = dict(learning_rate=1e-3)
LONGER = FASTER | dict(max_steps=1200)
SETTINGS = {  # what differs from the recipe
    "base": dict(max_steps=0),
    "recipe": {},
    "LR 3e-4": dict(learning_rate=3e-4),
    "LR 1e-3": FASTER,
    "LR 2e-3": dict(learning_rate=2e-3),
    "LR 1e-3, 1,200 steps": LONGER,
    "LR 2e-3, 1,200 steps": LONGER | dict(learning_rate=2e-3),
    "LR 1e-3, 1,200 steps, rank 128": LONGER | dict(rank=128),
    "LR 1e-3, rank 8": FASTER | dict(rank=8),
    "LR 1e-3, base in bf16": FASTER | dict(nf4=False),
    "LR 1e-3, neither cleaned nor filtered": FASTER | dict(data="verbatim"),
    "LR 1e-3, cleaned, not filtered": FASTER | dict(data="unfiltered"),
    "LR 1e-3, 10 words or more": FASTER | dict(data="10 words"),
    "LR 1e-3, 30 words or more": FASTER | dict(data="30 words"),
    "LR 1e-3, six wordings": FASTER | dict(data="six wordings"),
    "base, nearest product in the prompt": dict(max_steps=0, neighbour=True),
    "LR 1e-3, 1,200 steps, nearest product in the prompt": LONGER | dict(neighbour=True),
}
CHOSEN = "LR 2e-3, 1,200 steps"  # likelihood within .003 of the best on validation rows, and the best ROUGE there
FIRST = ("chosen", "LR 1e-3, 1,200 steps, nearest product in the prompt", "LR 2e-3, 1,200 steps",
         "LR 1e-3, 1,200 steps", "LR 1e-3, 1,200 steps, rank 128")  # the long ones
OTHER_WORDING = 'Please give a detailed description of this item, starting with "Description:".'
TITLES = (  # made up
    "Thornwick Stainless Steel Electric Kettle, 1.7 Liter, Cordless", "Brackley Wide Ruled Spiral Notebook, 3 Pack",
    "Orrin & Vale Leather Tool Belt with 11 Pockets", "The Lighthouse Keeper's Almanac (Paperback)",
    "Quillon Nitrile Gloves, Powder Free, Large, Box of 100", "Mellow Harbor: Piano Pieces for Rainy Evenings",
    "Dunmore Digital Caliper 6 Inch with LCD Display", "Pippin Wooden Train Set for Toddlers, 24 Pieces")


def workspace(work: Path, data: str) -> Path:
    "The workspace of one entry of DATA."
    return work / data.replace(" ", "_")


def prepare_rows(source: str, work: Path, data: str, few: int):
    "Prepare one entry of DATA; only the default and its other wordings hold rows out."
    import amazon_ft.cleaning as cleaning
    from amazon_ft.data import prepare
    arguments, held_out = dict(DATA[data]), 600 if data in ("default", "six wordings") else 0
    if arguments.get("min_words") == 0:  # no filter at all
        cleaning.repeats_title = lambda *_: False
    held_out = min(few, held_out) if few else held_out
    prepare(source, n_train=few or -1, n_valid=held_out, n_test=held_out, root=str(workspace(work, data)), **arguments)


def rows_for(work: Path, data: str):
    "Training rows of one entry of DATA without any that is close to a held-out row, and the validation rows."
    from amazon_ft.artefacts import load_prepared
    from amazon_ft.data import NearIndex
    default, training = load_prepared(workspace(work, "default"))[0], load_prepared(workspace(work, data))[0]["train"]
    close = set()
    for column in ("title", "content"):
        index = NearIndex()
        index.insert([text for split in ("validation", "test") for text in default[split][column]])
        close |= {i for i, near in enumerate(index.flags(list(training[column]))) if near}
    return training.select([i for i in range(len(training)) if i not in close]), default["validation"]


def with_neighbour(rows, training):
    "Rows with the nearest training product in the prompt, and that product's texts, one string a row."
    from amazon_ft.data import jaccard
    from amazon_ft.cleaning import words
    from amazon_ft.evaluate import nearest_titles
    titles, contents = list(training["title"]), list(training["content"])
    asked, shown = [], []
    for row, found in zip(rows, nearest_titles(list(rows["title"]), titles, 20)):
        mine = set(words(row["content"]))
        others = (i for i in found if titles[i] != row["title"])
        near = next((i for i in others if jaccard(mine, set(words(contents[i]))) < 0.7), None)
        cut = "" if near is None else " ".join(contents[near].split()[:120])
        task, product, question = row["input_text"].split("\n")
        example = [f"A similar product: {titles[near]}", f"Its description: {cut}"] if cut else []
        asked.append("\n".join([task, product, *example, question]))
        shown.append(f"{titles[near]} {cut}" if cut else "")
    return rows.remove_columns("input_text").add_column("input_text", asked), shown


def trained(base: str, folder: Path, training, validation, settings: dict):
    "A merged model by the package's own parts, and its last training loss."
    import torch
    from amazon_ft.merge import merged_model
    from amazon_ft.models import hardware_precision, load_model, load_tokenizer
    from amazon_ft.step import Execution
    from amazon_ft.train import build_trainer, encode_splits, lora_config, sft_config
    from peft import PeftModel
    nf4, steps, length = settings["nf4"], settings["max_steps"], 768 if settings["neighbour"] else 512
    if not steps:
        return load_model(base, "fp32", four_bit=True).dequantize().half(), None
    tokenizer, precision, gpu = load_tokenizer(base), hardware_precision(), torch.cuda.is_available()
    rows = encode_splits(dict(train=training, validation=validation), tokenizer, length)
    model = load_model(base, precision, four_bit=nf4)
    config = sft_config(folder / "run", precision, steps, settings["learning_rate"], save_steps=0)
    lora = lora_config(settings["rank"], 2 * settings["rank"])
    execution = Execution(False, 8192 if gpu else 1024, gpu, gpu)
    trainer = build_trainer(model.dequantize() if nf4 else model, tokenizer, *rows, lora, config, execution, length)
    trainer.train()
    trainer.model.save_pretrained(folder / "adapter")
    last = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]
    if nf4:
        return merged_model(base, folder / "adapter"), last
    return PeftModel.from_pretrained(load_model(base, "fp32"), folder / "adapter").merge_and_unload().half(), last


def judged(rows, texts: list, stopped=None, neighbours=None) -> dict:
    "Means and intervals of some texts for some rows; shares of specifics over all of them."
    import pandas as pd
    from amazon_ft.core import QUESTION
    from amazon_ft.measures import form, mean_intervals, score, usable
    from amazon_ft.truth import truth, unsupported
    references, titles = list(rows["content"]), list(rows["title"])
    table = pd.DataFrame(dict(title=titles, question=QUESTION, reference=references, prediction=texts))
    table = table.join(score(texts, references)).join(form(texts, references, titles)).join(truth(table))
    if stopped is not None:
        table["stopped"] = stopped
    table["usable"] = usable(table)
    names = [name for name in ("rouge1", "rougeL", "chrf", "loops", "title_only", "stopped", "usable") if name in table]
    found, n_invented = mean_intervals(dict(table[names].items()), names[3:]), table["invented"].map(len).sum()
    n_words = sum(len(text.split()) for text in texts)
    found["unsupported_per_100_words"] = float(100 * table["unsupported"].map(len).sum() / n_words)
    found["invented_share"] = float(n_invented / table["specifics"].sum())
    if neighbours:
        left = [len(unsupported(row.prediction, row.title, QUESTION, row.reference, near or "-"))
                for row, near in zip(table.itertuples(), neighbours)]
        found["borrowed_share"] = float((n_invented - sum(left)) / table["specifics"].sum())
    return found


def compare(base: str, work: Path, name: str, few: int) -> dict:
    "One entry of SETTINGS on the validation rows."
    import torch
    from amazon_ft.core import chat, chats
    from amazon_ft.decoding import CANDIDATES, CAREFUL
    from amazon_ft.generate import generate
    from amazon_ft.rules import generation_config
    from amazon_ft.measures import likelihood, mean_intervals
    from amazon_ft.models import load_tokenizer
    settings, start = RECIPE | SETTINGS[name], time.perf_counter()
    settings["max_steps"] = min(settings["max_steps"], 2) if few else settings["max_steps"]
    training, validation = rows_for(work, settings["data"])
    shown, neighbours = with_neighbour(validation, training)
    if settings["neighbour"]:
        validation, training = shown, with_neighbour(training, training)[0]
    model, loss = trained(base, work / "runs" / name.replace(" ", "_"), training, validation, settings)
    seconds, tokenizer, cap = time.perf_counter() - start, load_tokenizer(base), 16 if few else 256
    model = model.cuda() if torch.cuda.is_available() else model.float()
    table = likelihood(model.eval(), tokenizer, validation)
    nll = float((table["nll_token"] * table["reference_tokens"]).sum() / table["reference_tokens"].sum())
    found = dict(settings=settings, rows=len(training), validation=len(validation), loss=loss, seconds=round(seconds),
                 nll=nll, nll_token=mean_intervals({"": table["nll_token"]})[""])
    other = [chat(title, OTHER_WORDING) for title in validation["title"]]
    for label, asked, rules in (("greedy", chats(validation), {}), ("careful", chats(validation), CANDIDATES[CAREFUL]),
                                ("other wording", other, CANDIDATES[CAREFUL])):
        if not (settings["neighbour"] and label == "other wording"):
            written = generate(model, tokenizer, asked, cap, decoding=generation_config(tokenizer, cap, **rules))
            texts, stopped = [p.text for p in written], [float(p.stopped) for p in written]
            found[label] = judged(validation, texts, stopped, neighbours)
    return found


def baselines(work: Path) -> dict:
    "The validation rows' own texts, and those that need no model."
    from amazon_ft.evaluate import NEAREST, controls
    training, validation = rows_for(work, "default")
    texts = dict(reference=list(validation["content"])) | controls(validation, training)
    texts[NEAREST + ", near-duplicates left out"] = [text or "-" for text in with_neighbour(validation, training)[1]]
    return {name: judged(validation, given) for name, given in texts.items()}


def chosen(base: str, work: Path, few: int) -> dict:
    "The chosen setting through the stages, evaluated on test rows."
    import pandas as pd
    from amazon_ft.artefacts import load_prepared
    from amazon_ft.core import paths
    from amazon_ft.demo import before_after
    from amazon_ft.evaluate import evaluate
    from amazon_ft.merge import merge
    from amazon_ft.report import conclusions
    from amazon_ft.train import train
    root, settings = str(workspace(work, "default")), dict(SETTINGS[CHOSEN])
    settings["max_steps"] = 2 if few else settings["max_steps"]
    adapter, merged = train(base, root, **settings), merge(base, root)
    metrics = evaluate(base, root, k=few or 500)
    log = pd.read_csv(paths(base, root).run / "log.csv")
    kept = ("k", "lead", "decoding", "references_beyond_cap", "systems", "gain", "over_retrieval", "hardware",
            "versions")
    return dict(setting=CHOSEN, log=json.loads(log.to_json(orient="records")),
                decoding=merged["decoding"],
                adapter={name: adapter[name] for name in ("loss", "eval_loss", "best_step")},
                metrics={name: metrics[name] for name in kept}, conclusions=conclusions(metrics),
                prepared={name: load_prepared(root)[1][name] for name in ("counts", "cleaning", "shared_sentences")},
                texts=[dict(title=title) | before_after(title, base=base, root=root) for title in TITLES])


def one(args, few: int):
    "What a child process does: one entry, printed as JSON."
    work = Path(args.work)
    if args.only in DATA:
        prepare_rows(args.source, work, args.only, few)
        return None
    if args.only == "baselines":
        return baselines(work)
    return chosen(args.base, work, few) if args.only == "chosen" else compare(args.base, work, args.only, few)


def child(args, name: str):
    "A process for one entry."
    options = [f"--{option}={getattr(args, option)}" for option in ("base", "source", "work")]
    command = [sys.executable, __file__, "--only", name, *options]
    log = open(Path(args.work) / f"{name}.txt".replace(" ", "_"), "w+")
    return subprocess.Popen(command + ["--trial"] * args.trial, stdout=log, stderr=subprocess.STDOUT), log


def result(name: str, process, log):
    "What a process printed, or None with its last words."
    log.seek(0)
    *_, last = text = log.read().splitlines() or [""]
    if process.returncode:
        print(f"{name} failed:", *text[-12:], sep="\n  ", flush=True)
        return None
    return json.loads(last)


def main():
    parser = ArgumentParser(description=__doc__)
    for name in ("base", "source", "work", "out", "only"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--trial", action="store_true", help="two settings, two steps, few rows")
    parser.add_argument("--at_once", type=int, default=5, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after this time")
    args = parser.parse_args()
    if args.only:
        print("\n" + json.dumps(one(args, 8 if args.trial else 0)))
        return
    start, found, running = time.perf_counter(), {}, {}
    shutil.rmtree(args.work, ignore_errors=True)
    Path(args.work).mkdir(parents=True)
    first = {data: child(args, data) for data in DATA}
    for data, (process, log) in first.items():
        process.wait()
        result(data, process, log)
    print(f"prepared: {time.perf_counter() - start:.0f} s", flush=True)
    todo = ["chosen", "baselines", "recipe", "base, nearest product in the prompt"] if args.trial else [
        *FIRST, *(name for name in SETTINGS if name not in FIRST), "baselines"]
    while todo or running:
        while todo and len(running) < args.at_once and time.perf_counter() - start < args.seconds:
            name = todo.pop(0)
            running[name] = child(args, name)
        for name in [name for name, (process, _) in running.items() if process.poll() is not None]:
            found[name] = result(name, *running.pop(name))
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        if todo and not running and time.perf_counter() - start >= args.seconds:
            print("not run:", *todo, sep="\n  ")
            break
        time.sleep(0.3)
    settings = {name: found[name] for name in SETTINGS if found.get(name)}
    whole = dict(chosen=found.get("chosen"), baselines=found.get("baselines"), settings=settings)
    Path(args.out).write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
