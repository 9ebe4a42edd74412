"""Texts and files made to do harm: mutated catalogues, adversarial texts, control tokens that somebody typed."""
import gzip
import io
import json
import random
import shutil
import signal
import string
import time
import traceback
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path

JUNK = [b'"', b'""', b"'", b",", b";", b"\t", b"\n", b"\r", b"\r\n", b"\n\n", b"\\", b"{", b"}", b"[", b"]", b":",
        b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"null", b"1e999", b"-", b"\\ud800", b"<", b"PAR1", b"\x1f\x8b",
        b"PK\x03\x04", b"x" * 5000]
INPUT_S = 60  # for one mutated file: more is a loop without end
TEXT_S, SLOWER = 2, 4  # for one text and one function, of processor time; or so many times what made-up words take
ADVERSARIAL = {
    "residue and spaces": "This text refers to" + " " * 8_000, "residues": "This text refers to the " * 5_000,
    "comments": "<!--" * 32_000, "tags": "<p " * 30_000, "angles": "<" * 100_000, "entities": "&amp;" * 20_000,
    "ampersands": "&" * 100_000, "hashes": "&#" * 50_000, "numbers": "1," * 4_000, "digits": "1" * 50_000,
    "decimals": "1." * 25_000, "glued": "a.A" * 30_000, "quotes": "\u201c'" * 30_000, "hyphens": "A-" * 30_000,
    "names": "Aa Bb " * 10_000, "measures": "12 x " * 10_000, "codes": "A1-" * 20_000, "dashes": "-" * 100_000,
    "lines": " \n" * 50_000, "invisible": "\u200b\u00ad" * 50_000, "one word": "x" * 100_000, "brackets": "(" * 100_000,
    "words": " ".join(f"word{i}" for i in range(16_000)), "Japanese": "\u8336\u7897" * 20_000}
TYPED = ["<s>", "</s>", "a </s> b", "&lt;/s&gt;", "<unk>", "<|im_start|>", "<|im_end|>", "<|im_start|>assistant",
         "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>system<|end_header_id|>", "<|user|>", "<|assistant|>",
         "<|system|>", "<|im_<|im_end|>start|>", "<|im_\nend|>", "<<s>s>", "<|<|user|>|>"]
CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA3 = """<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>

{{ m['content'] | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
TINYLLAMA = """{% for m in messages %}<|{{ m['role'] }}|>
{{ m['content'] }}{{ eos_token }}
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
TEMPLATES = {  # Template, its control tokens, the one that ends a turn
    "ChatML": (CHATML, ["<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "Llama 3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|eot_id|>"),
    "TinyLlama": (TINYLLAMA, [], "</s>")}


class TooLong(BaseException):
    "Not an `Exception`, so that nothing on the way takes it for one of its own."


@contextmanager
def within(seconds: float, clock=signal.ITIMER_REAL):
    "Raise `TooLong` in the block after so many seconds."
    def late(*_):
        raise TooLong
    handlers = {number: signal.signal(number, late) for number in (signal.SIGALRM, signal.SIGVTALRM)}
    signal.setitimer(clock, seconds)
    try:
        yield
    finally:
        signal.setitimer(clock, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def mutate(rng: random.Random, content: bytes) -> bytes:
    "Cut, insert, repeat, swap or flip something in a few places."
    for _ in range(rng.choice((1, 1, 2, 5))):
        a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 1, 10, 1000)))
        content = rng.choice((
            lambda: content[:a] + rng.choice(JUNK) + content[a:], lambda: content[:a] + content[b:],
            lambda: content[:b] + content[a:], lambda: content[:a] + rng.randbytes(b - a) + content[b:],
            lambda: content[:a] + rng.choice(JUNK) + content[b:],
            lambda: content[:b] if rng.random() < .2 else content))()
    return content


def originals() -> dict:  # Name of a file to its content
    "Sound catalogues in each format."
    import pandas as pd
    rows = [dict(uid=f"B{i:04}", title=f"Cutting board {i}, {'large' * (i % 3)}",
                 content=(f'A board of "bamboo", {i} inch.\nSafe; dry it & oil it. \u00e9' if i % 4 else
                          "Bamboo board of good size"))
            for i in range(40)]
    table, parquet = pd.DataFrame(rows), io.BytesIO()
    table.to_parquet(parquet)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {"rows.json": lines, "rows.csv": table.to_csv(index=False).encode(),
            "rows.tsv": table.to_csv(index=False, sep="\t").encode(),
            "semicolons.csv": table.to_csv(index=False, sep=";", lineterminator="\r\n").encode(),
            "rows.parquet": parquet.getvalue()}


def packed(rng: random.Random, name: str, content: bytes) -> tuple:  # Name and content
    "As it is, or in a gzip or a zip of some kind."
    kind = rng.choice(("", "", "gz", zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    if kind == "gz":
        return f"{name}.gz", gzip.compress(content, 1)
    if kind == "":
        return name, content
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", kind) as file:
        file.writestr(name, content)
    return f"{name}.zip", archive.getvalue()


def own_lines(name: str, content: bytes) -> int:
    "How many lines a plain file has, by its format."
    if name.endswith(".json"):
        content = content.removeprefix(b"\xef\xbb\xbf")
        return content.count(b"\n") + (not content.endswith(b"\n"))
    return len(list(io.TextIOWrapper(io.BytesIO(content), "utf-8", "surrogateescape", newline="")))


def mutated(seed: int, n: int, folder: Path) -> list:
    "`n` mutated catalogues: each is read, all its lines accounted for, or it is a `UserError` that names it."
    from amazon_ft.catalogue import read_catalogue
    from amazon_ft.core import UserError
    from amazon_ft.data import read_sample
    rng, found = random.Random(seed), originals()
    complaints = []
    for i in range(n):
        name, content = rng.choice(list(found.items()))
        inside = rng.random() < .7
        content = mutate(rng, content) if inside else content
        plain, packing = packed(rng, name, content)
        file = folder / f"{i}_{plain}"
        file.write_bytes(packing if inside else mutate(rng, packing))
        try:
            with within(INPUT_S):
                said = _read(file, name, read_sample, UserError,
                             own_lines(name, content) if packing is content and inside else None)
                try:
                    read_catalogue(str(file))
                except UserError:
                    pass
        except TooLong:
            said = f"longer than {INPUT_S} s"
        except Exception as error:  # the finding of this check
            said = "".join(traceback.format_exception_only(error)).strip()[-200:]
            said += f" {traceback.extract_tb(error.__traceback__)[-1]}"
        if said:
            complaints.append(f"seed {seed}, input {i} ({file.name}): {said}")
        else:
            file.unlink()
    return complaints


def _read(file, inner, read_sample, user_error, lines):
    "A complaint, or None."
    try:
        sampler, tally = read_sample([file], 100, 42, ("title", "content"), "utf-8")
    except user_error as error:
        return None if inner in str(error) else f"the message does not name the file: {error}"
    counted = len(sampler.priorities) + tally.skipped.total() + tally.bad.total()
    if tally.lines != counted:
        return f"{tally.lines} lines read, {counted} accounted for"
    if lines is not None and not file.name.endswith(".parquet") and tally.lines != lines:
        return f"{tally.lines} lines read, the file has {lines}"
    return None


def bounded(name: str, folder: Path) -> list:
    "An adversarial text through cleaning and scoring, in bounded memory, and not long after any text of its length."
    import resource
    from amazon_ft.cleaning import clean
    from amazon_ft.data import shingles
    from amazon_ft.measures import form, score
    from amazon_ft.truth import unsupported
    text, rest = ADVERSARIAL[name], " ".join(["A good board."] * 3)
    rng = random.Random(0)
    plain = " ".join("".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(len(text) // 6 + 1))[:len(text)]
    uses = dict(clean=clean, shingles=shingles, score=lambda t: score([t], [t[::-1]]),
                itself=lambda t: score([t], [t]), form=lambda t: form([t], [rest], [t]),
                unsupported=lambda t: unsupported(t, rest, rest), supported=lambda t: unsupported(rest, t, rest))
    def spent(call, text, limit_s):
        start = time.process_time()
        with suppress(TooLong), within(limit_s, signal.ITIMER_VIRTUAL):
            call(text)
        return time.process_time() - start
    complaints = []
    for use, call in uses.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # the highest so far, hence before either text
        allowed = max(TEXT_S, SLOWER * spent(call, plain, 600))
        seconds = spent(call, text, 2 * allowed)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if seconds > allowed or grown > 700:
            complaints.append(f"{use}: {seconds:.1f} s for {len(text):,} characters, {allowed:.1f} are allowed; "
                              f"{grown} MiB more")
    return complaints


def typed(kind: str, folder: Path) -> list:
    "What a person typed or a catalogue holds is no control token, in a tokenizer of each kind."
    from amazon_ft.core import answered, asset, chat, chats
    from amazon_ft.models import load_tokenizer, render, token_ids
    from amazon_ft.catalogue import Record
    from amazon_ft.cleaning import clean
    from amazon_ft.data import row_of
    from transformers import AutoTokenizer
    template, tokens, end = TEMPLATES[kind]
    tokenizer = AutoTokenizer.from_pretrained(asset("tiny"))
    tokenizer.add_special_tokens(dict(additional_special_tokens=tokens, eos_token=end))
    tokenizer.chat_template = template
    shutil.copytree(asset("tiny"), folder, dirs_exist_ok=True)
    tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(str(folder))
    marks = [*map(str, tokenizer.added_tokens_decoder.values()), "<|user|>", "<|assistant|>", "<|system|>"]
    def controls(turns):
        (ids,) = token_ids(tokenizer, [turns])
        text = render(tokenizer, turns)
        return [i for i in ids if i in tokenizer.added_tokens_decoder], {mark: text.count(mark) for mark in marks}
    def places(text):
        row = row_of(Record(clean(text)[0], clean(text)[0], ""), text)
        rows = {name: [value] for name, value in row.items()}
        return [chat(text), chat("A board", text), chats(rows)[0], answered(rows)[0]]
    plain = list(map(controls, places("A board")))
    return [f"{text!r} typed as {place}: control tokens {found[0]}, {expected[0]} expected" for text in TYPED
            for place, found, expected in zip(("title", "question", "prepared title", "prepared content"),
                                              map(controls, places(text)), plain) if found != expected]
