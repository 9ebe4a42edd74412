"""Readers of trn.json side by side: the same generated file, each reader in a process of its own.

    python tools/bench_reader.py --rows 300000 --repeats 3
    python tools/bench_reader.py --rows 2248619 --stages --out nbs/bench/reader.json

The rows are made up, in the shape of trn.json: about 1 kB each, a third of the descriptions empty, 15 % of the others
repeated, lengths lognormal. Every reader reads titles and descriptions and counts the rows that have both; ours also
quarantines, hashes, deduplicates and samples.
"""
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

SYLLABLES = "ka to mi ra len vor sta qui ner del po shi ban cor lu fre gan tis wel dro".split()


def make_rows(n: int, seed: int = 0):
    "JSON lines in trn.json's shape, lengths and quirks."
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.choice((1, 2, 2, 3, 3, 4)))) for _ in range(20_000)]
    sentences = [_sentence(rng, words) for _ in range(300_000)]
    titles = [" ".join(rng.choices(words, k=5)).title() for _ in range(100_000)]
    recent = []
    for i in range(n):
        labels = [rng.randrange(1_305_265) for _ in range(min(int(rng.lognormvariate(3.4, .8)) + 1, 150))]
        title = "" if rng.random() < .056 else f"{rng.choice(titles)} {rng.randrange(99_999)}"
        content = _content(rng, sentences, recent) if rng.random() > .3335 else ""
        yield (f'{{"uid": "B{i:09}", "title": "{title}", "content": "{content}", "target_ind": {labels}, '
               f'"target_rel": [{", ".join(["1.0"] * len(labels))}]}}\n')


def _sentence(rng, words):
    "A sentence, sometimes with an entity or an escaped quotation mark."
    text = " ".join(rng.choices(words, k=rng.randint(6, 18))).capitalize()
    ending = rng.choices(("", " &amp; more", " &#8217;", ' \\"so\\"'), (.92, .04, .02, .02))[0]
    return f"{text}{ending}."


def _content(rng, sentences, recent):
    "A description: a repeat, or sentences to a lognormal length."
    if recent and rng.random() < .15:
        return rng.choice(recent)
    length, parts = min(int(rng.lognormvariate(5.99, 1.0)), 190_000), []
    while length > 0:
        parts.append(rng.choice(sentences))
        length -= len(parts[-1]) + 1
    text = ("" if rng.random() < .15 else " ").join(parts)
    text += "--This text refers to thePaperbackedition." if rng.random() < .23 else ""
    if len(recent) < 50_000:
        recent.append(text)
    else:
        recent[rng.randrange(50_000)] = text
    return text


def write_file(file: Path, n: int):
    "Generate `file`."
    from isal import igzip_threaded
    with igzip_threaded.open(file, "wt", compresslevel=3, encoding="ascii") as out:
        out.writelines(make_rows(n))


def isal_alone(file):
    from isal import igzip
    with igzip.open(file) as stream:
        while stream.read(1 << 18):
            pass


def ours(file):
    from amazon_ft.data import read_sample
    sampler, tally = read_sample([Path(file)], 16_000, 42, ("title", "content"), "utf-8")
    heavy = {"datasets", "torch", "pandas", "pyarrow"} & set(sys.modules)
    assert not heavy, f"the reader imported {heavy}"
    return sampler.n_distinct(), tally.lines


def polars(file):
    import polars as pl
    rows = pl.scan_ndjson(file).filter((pl.col("title") != "") & (pl.col("content") != ""))
    return rows.select(pl.col("content").str.len_bytes().sum(), pl.len()).collect(engine="streaming")


def duckdb(file):
    import duckdb
    columns = "{title: 'VARCHAR', content: 'VARCHAR'}"
    return duckdb.sql(f"select sum(length(content)), count(*) from read_ndjson('{file}', columns={columns}) "
                      "where title != '' and content != ''").fetchall()


def datasets(file):
    from datasets import load_dataset
    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset("json", data_files=file, cache_dir=cache, split="train")
        return len(rows)


def pandas_chunks(file):
    import pandas as pd
    n = 0
    for chunk in pd.read_json(file, lines=True, chunksize=50_000):
        n += int(((chunk.title != "") & (chunk.content != "")).sum())
    return n


def prepare_12k(file):
    from amazon_ft.data import prepare
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as root:
        prepare(file, root=root)


def prepare_all(file):
    from amazon_ft.data import prepare
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as root:
        prepare(file, n_train=-1, root=root)


READERS = {f.__name__: f for f in (isal_alone, ours, polars, duckdb, datasets, pandas_chunks)}
STAGES = {f.__name__: f for f in (prepare_12k, prepare_all)}


def measure(name: str, file: Path) -> tuple:
    "Seconds and peak MB of one reader in a new process; a few rows read before have loaded its libraries."
    few = file.with_name("few.json.gz")
    if not few.exists():
        write_file(few, 6000)
    code = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import bench_reader as b; "
            f"b.{name}({str(few)!r}); start = time.time(); b.{name}({str(file)!r}); seconds = time.time() - start; "
            "print('RESULT', seconds, b.peak_mb())")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"POLARS_MAX_THREADS": "2"})
    return tuple(map(float, run.stdout.rsplit("RESULT", 1)[1].split()))


def peak_mb() -> float:
    "The most memory this process has had."
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def hardware() -> str:
    "Processor and cores."
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0]}, {len(os.sched_getaffinity(0))} cores"


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300_000, help="rows to generate (default 300,000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each reader; the median is reported")
    parser.add_argument("--stages", action="store_true", help="also run the whole of prepare, once each")
    parser.add_argument("--only", nargs="*", default=list(READERS), help=f"of {', '.join(READERS)}")
    parser.add_argument("--file", type=Path, help="keep the generated file here, or use the one that is here")
    parser.add_argument("--out", type=Path, help="put the results into this JSON list")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        file = args.file or Path(tmp) / "trn.json.gz"
        if not file.exists():
            write_file(file, args.rows)
        runs = {name: [] for name in args.only}
        for _ in range(args.repeats):
            for name in args.only:
                runs[name].append(measure(name, file))
        if args.stages:
            runs |= {name: [measure(name, file)] for name in STAGES}
        size = file.stat().st_size
    table = [dict(reader=name, seconds=round(statistics.median(s for s, _ in r), 2), best=round(min(r)[0], 2),
                  rows_per_s=round(args.rows / statistics.median(s for s, _ in r)), peak_mb=round(max(m for _, m in r)))
             for name, r in runs.items()]
    result = dict(rows=args.rows, gz_bytes=size, hardware=hardware(), repeats=args.repeats, table=table)
    if args.out:
        others = json.loads(args.out.read_text()) if args.out.exists() else []
        others = [other for other in others if other["rows"] != args.rows]
        args.out.write_text(json.dumps(sorted([*others, result], key=lambda r: r["rows"]), indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
