"""Keep the pages in Portuguese in step with the English ones.

Usage: python tools/portuguese.py             code and outputs from the English page; lists what has to be translated
       python tools/portuguese.py --done      the same, and takes the Portuguese prose for a translation of the English
       python tools/portuguese.py --check     changes nothing; fails when a page is out of step
Cells belong together by their ids. Code, stored outputs and the head come from the English page and run in nobody's
tests twice: each code cell gets `eval: false`. Prose is written by people. A comment at its end names the English text
that it translates, so a change there asks for one here; fenced blocks, names in backticks and numbers must agree.
"""
import argparse
import re
import sys
from collections import Counter
from hashlib import sha256

from execnb.nbio import mk_cell, nb2str, read_nb
from nbdev.config import get_config

PAGES = {"index.pt-BR.ipynb": "index.ipynb", "06_seu_catalogo.pt-BR.ipynb": "06_your_catalogue.ipynb"}
HEAD = ("badge", "colab-setup")  # ids of the cells that tools/owner.py writes
EXPORTS = re.compile(r"#\|\s*(default_exp|exports?)\b.*\n?")
MARK = re.compile(r"\n*<!-- en ([0-9a-f]{8}) -->\s*$")
FENCE = re.compile(r"^```.*?^```$", re.S | re.M)
TITLE = "# "  # how the first cell begins; nbdev allows it nothing but title and subtitle


def mark(
    english: str,  # An English cell
) -> str:  # The last line of its translation
    "A comment that changes with the English text."
    return f"\n\n<!-- en {sha256(english.encode()).hexdigest()[:8]} -->"


def code(
    cell,  # An English code cell
    old,  # The Portuguese one, or None
):  # The cell for the Portuguese page, or None if that needs none
    "An English cell's code and outputs, its options as they are on the Portuguese page."
    lines = cell.source.splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#|")).strip("\n")
    if not body:
        return None
    options = [line for line in lines if line.startswith("#|") and not EXPORTS.match(line)]
    if re.search(r"^#\|\s*export$", cell.source, re.M):
        options.append("#| hide")
    if old is not None:
        options = [line for line in old.source.splitlines() if line.startswith("#|")]
    elif "#| eval: false" not in options:
        options.append("#| eval: false")
    new = mk_cell("\n".join([*options, body]), "code", id=cell.id)
    new.execution_count, new.outputs = None, cell.outputs
    return new


def facts(
    text: str,  # A cell of prose
) -> dict:  # What two languages must agree on
    "Fenced blocks, names in backticks and numbers, the latter without separators."
    prose = FENCE.sub("", text)
    prose = re.sub(r"\]\([^)]*\)|<[^>]*>", "]", prose)
    numbers = re.findall(r"\d[\d.,]*", re.sub(r"`[^`]*`", "", prose))
    return {"fenced blocks": FENCE.findall(text), "names in backticks": Counter(re.findall(r"`[^`]+`", prose)),
            "numbers": Counter(re.sub(r"[.,]", "", number) for number in numbers)}


def out_of_step(
    english: str,  # An English cell of prose
    text: str,  # Its translation
) -> list:  # Complaints
    "What a translation does not share with its original."
    if english.startswith(TITLE):
        return []
    found = MARK.search(text)
    said = [] if found and found[0].strip() == mark(english).strip() else ["the English text has changed"]
    ours, theirs = facts(MARK.sub("", text)), facts(english)
    return said + [f"other {kind}: {theirs[kind]}, here {ours[kind]}" for kind in ours if ours[kind] != theirs[kind]]


def page(
    name: str,  # A Portuguese notebook
    done: bool,  # Whether its prose is a translation of today's English
) -> tuple:  # The notebook as it must be, and what people have to do
    "Code from the English page, prose from the Portuguese one."
    folder = get_config().nbs_path
    english, nb = read_nb(folder / PAGES[name]), read_nb(folder / name)
    old = {cell.id: cell for cell in nb.cells}
    cells, todo = [cell for cell in nb.cells if cell.cell_type == "raw"], []
    for cell in english.cells:
        known = old.get(cell.id)
        if cell.id in HEAD:
            new = known
        elif cell.cell_type == "code":
            new = code(cell, known)
        elif known is None:
            new = mk_cell(cell.source, "markdown", id=cell.id)
            todo.append(f"{name}: translate cell {cell.id}: {cell.source[:60]!r}")
        else:
            new = known
            if done and not cell.source.startswith(TITLE):
                new.source = MARK.sub("", new.source) + mark(cell.source)
            todo += [f"{name}: cell {cell.id}: {why}" for why in out_of_step(cell.source, new.source)]
        cells += [new] if new is not None else []
    nb.cells = cells
    return nb2str(nb), todo


def main() -> int:
    "Bring the pages in step, or say what is missing."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a page is out of step")
    parser.add_argument("--done", action="store_true", help="the prose is a translation of today's English")
    args, found = parser.parse_args(), []
    for name in PAGES:
        path = get_config().nbs_path / name
        text, todo = page(name, args.done)
        if text != path.read_text(encoding="utf-8"):
            if args.check:
                todo.append(f"{name}: code or outputs are not the English page's: python tools/portuguese.py")
            else:
                path.write_text(text, encoding="utf-8")
        found += todo
    print("\n".join(found) or "ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
