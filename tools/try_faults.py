"""Disturb every stage in every way we could think of, and hold the project to its word.

Usage: python tools/try_faults.py [--only PATTERN] [--one_in N] [--keep FOLDER]
The same result as undisturbed, or one sentence that names the file and the remedy; exit codes 0, 2 and 130; no
traceback; nothing silent. A small configuration of the real stages (base `tiny`, some 60 products, 4 steps) runs as the
console scripts do. Kinds of checks: kill, damage, full, ctrl-c, arguments, places, locks, inputs, texts, tokens, page.
"""
import argparse
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ |= dict(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", MPLBACKEND="agg",
                   COLUMNS="120")

from faults_inputs import ADVERSARIAL, TEMPLATES, bounded, mutated, typed
from faults_page import forged
from faults_harness import CHECKOUT, KNOWN, differences, in_parallel, load, manners, raising, run, states, tree

ROWS, TITLES = 90, 6
ROOM = 4 << 30  # bytes that the states take at most
AT = "--base tiny --root ws"
STAGES = dict(
    prepare="amazon_ft_prepare --source rows.json --n_train 40 --n_valid 8 --n_test 8 --root ws",
    train=f"amazon_ft_train {AT} --max_steps 4 --save_steps 2 --batch_size 2 --max_length 256",
    merge=f"amazon_ft_merge {AT}",
    eval=f"amazon_ft_eval {AT} --k 4 --max_new_tokens 16",
    generate=f"amazon_ft_generate {AT} --source titles.csv --out ws/described.csv --max_new_tokens 16")
AGAIN = dict(  # the same stages over finished work of another wish
    prepare=STAGES["prepare"] + " --seed 1", train=STAGES["train"] + " --overwrite", merge=STAGES["merge"],
    eval=STAGES["eval"], generate=STAGES["generate"] + " --max_new_tokens 12")
MODEL, ADAPTER = "ws/outputs/tiny_descfmt_merged_fp16", "ws/outputs/tiny_descfmt_lora/adapter"
DATA, RUN = "ws/cache/prepared_descfmt", "ws/outputs/tiny_descfmt_lora"

# What to damage: files, the state of the workspace before, the stages that run then. The first must use the file, or
# say in a sentence that it cannot and how to mend it; the others are that remedy and the way back to the first.
DAMAGED = [
    (f"{DATA}/amazon_ft.json", "prepare", "train prepare train"),
    (f"{DATA}/dataset_dict.json", "prepare", "train prepare train"),
    (f"{DATA}/train/data-*.arrow", "prepare", "train prepare train"),
    (f"{DATA}/train/state.json", "prepare", "train prepare train"),
    (f"{DATA}/train/dataset_info.json", "prepare", "train prepare train"),
    (f"{DATA}/test/data-*.arrow", "merge", "eval prepare eval"),
    (f"{RUN}/plan.json", "halfway", "train train"),
    *((f"{RUN}/checkpoint-2/{name}", "halfway", "train train") for name in (
        "adapter_model.safetensors", "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth",
        "trainer_state.json", "training_args.bin", "amazon_ft.json")),
    (f"{RUN}/plan.json", "train", "train train"),
    *((f"{ADAPTER}/{name}", "train", "merge train merge") for name in (
        "amazon_ft.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json")),
    *((f"{MODEL}/{name}", "merge", "eval merge eval") for name in (
        "amazon_ft.json", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja")),
    (f"{MODEL}/model.safetensors", "eval", "generate merge eval generate"),
    (f"{MODEL}/README.md", "eval", "eval"),
    ("ws/cache/predictions/*.json", "eval", "eval"),
    ("ws/outputs/metrics_*.json", "eval", "eval"),
    ("ws/outputs/examples_*.jsonl", "eval", "eval"),
    ("ws/outputs/votes_*.sqlite", "voted", "eval"),
    ("ws/.described.csv.parts/plan.json", "described", "generate"),
    ("ws/.described.csv.parts/0.json", "described", "generate"),
]
VARIANTS = dict(emptied=lambda content: b"", cut=lambda content: content[:len(content) // 2],
                flipped=lambda content: (content[:(i := len(content) // 2)]
                                         + bytes([content[i] ^ 1] if content else b"x") + content[i + 1:]))

BAD = dict(
    prepare="n_train -2|n_valid -1|n_test -1|max_bad nan|max_bad 1.5|max_bad -.1|seed -1|seed 4294967296|"
            "encoding undefined|encoding klingon|encoding base64|source nowhere.csv|source .|"
            "source https://example.org/catalogue.csv|title_column content|title_column nowhere|n_train many|"
            "source empty.csv|source latin.csv|source utf16.csv",
    train="max_steps 0|max_steps -1|epochs 0|epochs -1|epochs nan|learning_rate 0|learning_rate -1|learning_rate nan|"
          "learning_rate inf|batch_size 0|max_length -5|max_length 0|max_length 7|rank 0|alpha 0|dropout nan|dropout 1|"
          "dropout -.1|save_steps -1|seed -1|seed 4294967296|report_to os|report_to nonsense|precision int8|"
          "base nowhere/at/all|base .|base torn|base unparsed|base untemplated|base unknown|base greedy",
    merge="base nowhere/at/all|base .|root nowhere|root rows.json|decoding beams",
    eval="k 0|k -1|max_new_tokens 0|batch_size 0|batch_size -1|seed -1|seed 4294967296|base nowhere/at/all|"
         "root nowhere",
    generate="max_new_tokens 0|max_new_tokens -1|out .|out rows.json/described.csv|source nowhere.csv|source .|"
             "source https://example.org/catalogue.csv|title_column nowhere|encoding undefined|source empty.csv|"
             "source latin.csv|root nowhere|title_column generated_description",
    demo="port 0|port -1|port 65536|port http|root nowhere|base nowhere/at/all|title")
DEMO = f"amazon_ft_demo {AT}"


def stage(command: str) -> str:
    "The stage that a command line belongs to, for the names of checks."
    return command.split()[0].removeprefix("amazon_ft_")


def inputs(folder: Path):
    "A catalogue from the package's sample, titles to describe, and files that are no catalogue."
    from amazon_ft.core import asset
    import gzip
    with gzip.open(asset("sample/trn.json.gz"), "rb") as stream:
        (folder / "rows.json").write_bytes(b"".join(line for line, _ in zip(stream, range(ROWS))))
    (folder / "titles.csv").write_text("title\n" + "".join(f"Norvelle Cutting Board {i}\n" for i in range(TITLES)))
    (folder / "empty.csv").write_bytes(b"")
    (folder / "latin.csv").write_bytes("title,content\ncafé,très bon, très bon, très bon\n".encode("latin-1"))
    (folder / "utf16.csv").write_bytes("title,content\ncafé,très bon\n".encode("utf-16"))
    for name in ("torn", "unparsed", "untemplated", "unknown", "greedy"):
        shutil.copytree(asset("tiny"), folder / name)
    (folder / "torn/model.safetensors").write_bytes((folder / "torn/model.safetensors").read_bytes()[:1000])
    (folder / "unparsed/tokenizer.json").write_text('{"version": ')
    (folder / "untemplated/chat_template.jinja").write_text("{% for message in messages %}")
    (folder / "unknown/config.json").write_text('{"model_type": "no_such_thing"}')
    (folder / "greedy/recipe.json").write_text('{"max_steps": -4, "no_such_argument": 1}')


def place(state: Path, folder: Path):
    "Put a workspace and the inputs into an empty folder, as copies."
    shutil.copytree(state, folder / "ws", dirs_exist_ok=True)
    for file in state.parent.parent.glob("inputs/*"):
        os.symlink(file, folder / file.name)


def rehearse(work: Path) -> tuple:  # Name of a state to its folder, and pairs of a command and its photographs
    "All stages once, then again over the finished work; photographs before each write."
    kept, shots, faults = {"nothing": work / "states/nothing"}, [], []
    (work / "inputs").mkdir()
    kept["nothing"].mkdir(parents=True)
    inputs(work / "inputs")
    def go(name, start, command):
        if start not in kept:
            return
        folder, pictures = work / f"rehearsal_{name}", work / f"pictures_{name}"
        folder.mkdir()
        pictures.mkdir()
        place(kept[start], folder)
        ran = run(folder, command, states(folder / "ws", pictures))
        if ran.code:
            faults.append((f"undisturbed {command}", [f"exit {ran.code}: {ran.err[-1000:]}"]))
            return
        if ran.err:
            faults.append((f"undisturbed {command}", [f"words on stderr: {ran.err}"]))
            KNOWN.update(ran.err.splitlines())
        load(ran.modules)
        kept[name] = work / "states" / name
        (folder / "ws").rename(kept[name])
        shots.append((command, kept[name], sorted(pictures.iterdir())))
    for before, name in zip(["nothing", *STAGES], STAGES):
        go(name, before, STAGES[name])
    for name, command, wanted, unwanted in (
            ("halfway", "train", f"{RUN}/checkpoint-2/amazon_ft.json", f"{RUN}/checkpoint-4"),
            ("described", "generate", "ws/.described.csv.parts/0.json", "ws/described.csv")):
        pictures = next((p for c, _, p in shots if c == STAGES[command]), [])
        at = [p for p in pictures if (p / wanted[3:]).exists() and not (p / unwanted[3:]).exists()]
        kept |= {name: at[0]} if at else {}
    if "eval" in kept:
        shutil.copytree(kept["eval"], work / "states/voted")
        votes(work / "states/voted")
        kept["voted"] = work / "states/voted"
    go("train over train", "generate", AGAIN["train"] + " --seed 7")
    go("train over halfway", "halfway", AGAIN["train"] + " --seed 7")
    go("merge over merge", "train over train", AGAIN["merge"])
    go("decoding over merge", "merge", STAGES["merge"] + " --decoding greedy")
    go("eval over eval", "merge over merge", AGAIN["eval"])
    go("generate over generate", "eval over eval", AGAIN["generate"])
    go("prepare over prepare", "prepare", AGAIN["prepare"])
    go("voted, eval", "voted", STAGES["eval"])
    return kept, shots, faults


def votes(folder: Path):
    "Some votes on the evaluated texts, cast in a process of its own."
    (examples,) = folder.glob("outputs/examples_*.jsonl")
    cast = """import sys
from pathlib import Path
from amazon_ft.jury import rating_pairs, vote
for pair in rating_pairs(examples := Path(sys.argv[1])):
    vote(examples, "ann", pair, "tuned")"""
    subprocess.run([sys.executable, "-c", cast, examples], cwd=CHECKOUT, check=True)


def ends_alike(folder: Path, command: str, wanted: dict) -> list:
    "Run the command again: it must end well, with the content that an undisturbed run leaves."
    ran = run(folder, command)
    if complaints := manners(ran, (0,)):
        return [f"run again: {complaint}" for complaint in complaints]
    return listed("run again: other content", differences(wanted, folder / "ws"))


def listed(what: str, names: list) -> list:  # One complaint, or none
    "The first of many files."
    return [f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"] if names else []


def killed(state: Path, command: str, wanted: dict, folder: Path) -> list:
    "The same command after a kill that left `state`."
    place(state, folder)
    return ends_alike(folder, command, wanted)


def damaged(kept: dict, wanted: dict, pattern: str, start: str, then: list, variant: str, folder: Path) -> list:
    "A file is damaged; the first stage heals or says it, the others mend it."
    place(kept[start], folder)
    file = sorted(folder.glob(pattern))[0]
    file.write_bytes(VARIANTS[variant](file.read_bytes()))
    name, wanted = str(file.relative_to(folder / "ws")), wanted["voted, eval" if start == "voted" else then[-1]]
    first = run(folder, STAGES[then[0]])
    spoken = file.name in first.out
    def off():
        return [each for each in differences(wanted, folder / "ws") if not (each.startswith(name) and (
            spoken or len(then) > 1 or name.startswith("cache/") or file.suffix == ".sqlite"))]
    complaints = manners(first, (0, 2), (file.name, str(file.parent.relative_to(folder))))
    if first.code == 0:
        return complaints + listed("silent: exit 0, other content", off())
    if complaints or variant != "cut":
        return complaints  # without any: the same words as for a file cut short, and the same way back
    if re.search(f"(remove|delete|move) (it|{file})", first.err):
        file.unlink()
        return manners(run(folder, STAGES[then[0]]), (0,))
    for stage in then[1:]:
        remedy = STAGES[stage] + " --overwrite" * ("--overwrite" in first.err and stage == "train")
        if faults := manners(ran := run(folder, remedy), (0,)):
            return [f"said: {first.err}", f"but then {remedy}: {faults[0]}"]
    return listed(f"mended as told ({first.err}), but other content", off())


def full(kept: dict, wanted: dict, start: str, name: str, limit: int, folder: Path) -> list:
    "No file may grow beyond a limit, as on a full disk; then there is room again."
    place(kept[start], folder)
    def before():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    ran = run(folder, STAGES[name], before)
    return manners(ran, (0, 2), ("ws",)) + ends_alike(folder, STAGES[name], wanted[name])


def failing(kept: dict, wanted: dict, start: str, name: str, n: int, error, folder: Path) -> list:
    "The n-th write fails or is interrupted; then all is well."
    place(kept[start], folder)
    ran = run(folder, STAGES[name], raising(folder / "ws", n, error))
    complaints = manners(ran, (130,) if error == signal.SIGINT else (2,), () if error == signal.SIGINT else ("ws",))
    return complaints + ends_alike(folder, STAGES[name], wanted[name])


def impossible(kept: dict, start: str, command: list, named: tuple, folder: Path) -> list:
    "A command that cannot work: exit 2, a sentence, nothing written."
    place(kept[start], folder)
    before = tree(folder)
    ran = run(folder, command)
    return manners(ran, (2,), named) + [f"written: {name}" for name in differences(before, folder)]


def waits(kept: dict, wanted: dict, start: str, name: str, folder: Path) -> list:
    "A stage that finds the workspace held says so at once, and goes on when it is free."
    from filelock import FileLock
    place(kept[start], folder)
    lock = FileLock(folder / "ws/.lock")
    lock.acquire()
    def release():
        time.sleep(2)
        lock.release()
    ran = run(folder, STAGES[name], meanwhile=lambda pid: release())
    said = [] if "wait" in ran.out + ran.err else ["waits without a word"]
    return said + manners(ran, (0,)) + differences(wanted[name], folder / "ws")


def both(kept: dict, folder: Path) -> list:
    "Two catalogues described into one file at a time: the file is one of them, whole."
    place(kept["eval"], folder)
    other = STAGES["generate"] + " --question Colour?"
    alone = folder / "alone"
    results = []
    for i, command in enumerate((STAGES["generate"], other)):
        (alone / str(i)).mkdir(parents=True)
        place(kept["eval"], alone / str(i))
        run(alone / str(i), command)
        results.append((alone / str(i) / "ws/described.csv").read_text())
    second = []
    first = run(folder, STAGES["generate"], meanwhile=lambda pid: second.append(run(folder, other)))
    mixed = (folder / "ws/described.csv").read_text() not in results
    return manners(first) + manners(second[0]) + ["rows of both in one file"] * mixed


def disturbed(kept: dict, shots: list) -> list:  # Triples of kind, name and function
    "All checks on stages."
    order = dict(zip(STAGES, ["nothing", *STAGES]))
    cases = [("inputs", f"mutated, seed {seed}", partial(mutated, seed, 500)) for seed in range(10)]
    cases += [("texts", name, partial(bounded, name)) for name in ADVERSARIAL]
    cases += [("tokens", kind, partial(typed, kind)) for kind in TEMPLATES]
    if "generate" in kept:
        cases.append(("page", "forged calls", partial(forged, kept["generate"], place, run, manners)))
    wanted = {name: tree(kept[name]) for name in (*STAGES, "voted, eval") if name in kept}
    cases += [("kill", f"{end.name} before {picture.name}",
              partial(killed, picture, command, tree(end)))
             for command, end, pictures in shots for i, picture in enumerate(pictures)
             if not (picture.name[4:].startswith(("remove", "rmdir")) and i % 4)  # of removals one in four
             and not ("over" in end.name and "_lora|checkpoint-" in picture.name)]  # a fresh run again
    for pattern, start, then in DAMAGED:
        cases += [("damage", f"{pattern} {variant} after {start}, then {then}",
                   partial(damaged, kept, wanted, pattern, start, then.split(), variant)) for variant in VARIANTS
                  if start in kept and not (variant == "emptied" and start == "voted")]  # SQLite takes it for a new one
    for name, start in order.items():
        if name not in kept:
            continue
        (writes, *_) = ([int(p.name[:3]) for p in pictures if p.name[4:].startswith(("open", "rename"))]
                        for command, _, pictures in shots if command == STAGES[name])
        cases += [("full", f"{name}, files up to {limit} bytes",
                   partial(full, kept, wanted, start, name, limit)) for limit in (0, 3000, 200_000)]
        for kind, error in (("full", errno.ENOSPC), ("full", errno.EACCES), ("ctrl-c", signal.SIGINT)):
            moments = sorted({writes[1], writes[len(writes) // 2], writes[-1]})[:1 if error == errno.EACCES else 3]
            cases += [(kind, f"{name}, {error!r} at event {at}", partial(failing, kept, wanted, start, name, at, error))
                      for at in moments]
        for bad in BAD[name].split("|"):
            option, value = bad.split()
            cases.append(("arguments", f"{name} --{bad}", partial(
                impossible, kept, order[name], [*STAGES[name].split(), f"--{option}", value],
                (f"--{option}", value.split("/")[0]))))
    cases += [("arguments", f"demo --{bad}", partial(impossible, kept, "eval", f"{DEMO} --{bad}".split(), ()))
              for bad in BAD["demo"].split("|") if "eval" in kept]
    cases += [("arguments", f"{name}, not UTF-8", partial(
        impossible, kept, order[name], [*STAGES[name].split(), "--root", "caf\udce9"], ()))
        for name in STAGES if name in kept]
    cases += [("locks", f"{name} waits", partial(waits, kept, wanted, order[name], name)) for name in list(STAGES)[:4]
              if name in kept]
    if "generate" in kept:
        cases.append(("locks", "two at one --out", partial(both, kept)))
    return cases


def main() -> int:
    "Rehearse, disturb, count."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="a regular expression for `KIND: NAME` of the checks to make")
    parser.add_argument("--one_in", type=int, default=1, help="make every N-th check of a kind (default: every one)")
    parser.add_argument("--keep", type=Path,
                        help="folder for rehearsal and results (default: a temporary one, removed)")
    args = parser.parse_args()
    memory = Path(os.sep, "dev", "shm")  # syncing to a real disk takes half of the time
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    work = args.keep or Path(mkdtemp(prefix="faults_", dir=memory if roomy else None))
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    work, start = work.resolve(), time.perf_counter()
    kept, shots, faults = rehearse(work)
    print(f"rehearsed after {time.perf_counter() - start:.0f} s: "
          f"{sum(len(p) for _, _, p in shots)} states between writes", flush=True)
    cases, seen = [], Counter()
    for kind, name, case in disturbed(kept, shots):
        if not args.only or re.search(args.only, f"{kind}: {name}"):
            if seen[kind] % args.one_in == 0:
                cases.append((kind, name, case))
            seen[kind] += 1
    found = in_parallel([(f"{kind}: {name}", case) for kind, name, case in cases], work)
    wrong = dict(faults) | {name: complaints for name, (complaints, _) in found.items() if complaints}
    for name, complaints in wrong.items():
        print(f"FAILED {name}\n" + "\n".join(f"    {complaint}" for complaint in complaints))
    counts, bad, spent = Counter(kind for kind, _, _ in cases), Counter(), Counter()
    for name, (complaints, seconds) in found.items():
        kind = name.split(":")[0]
        bad[kind] += bool(complaints)
        spent[kind] += seconds
    for kind, n in counts.items():
        print(f"{kind:10} {n - bad[kind]:3} of {n:3} as promised, {spent[kind]:3.0f} s of processor time")
    print(f"{len(found) - bad.total()} of {len(found)} checks passed in {time.perf_counter() - start:.0f} s"
          f"{f', of {seen.total()} there are' * (len(found) < seen.total())}")
    if not args.keep:
        shutil.rmtree(work)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
