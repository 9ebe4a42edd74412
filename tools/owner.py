"""Keep notebooks and site in step with `user`, `branch` and `version` in settings.ini, and with the list of notebooks.

Usage: python tools/owner.py [--check]      rewrite in place, or only name the files that are out of step
Each numbered notebook gets behind the title, which stands in a cell of its own: its Colab badge, then its cell
`at-a-glance` if there is one (how long it takes, on what), then the hidden cell that sets Colab up. Links to the
repository and its site get the owner's name in every notebook and in the site's configuration, whose sidebar lists
every notebook in order.
"""
import argparse
import re
import sys
from pathlib import Path

from execnb.nbio import mk_cell, nb2str, read_nb
from nbdev.config import get_config

BADGE, FACTS, SETUP, INTRO = "badge", "at-a-glance", "colab-setup", "introduction"  # ids of cells
TITLE = re.compile(r"(# [^\n]*(?:\n+> [^\n]*)?)\s*(.*)", re.S)  # title and subtitle, one line each, and what is below
SECTIONS = {"The pipeline": r"0[0-4]", "Around it": r"0[5-9](?!.*pt-BR)", "Em português": r".*pt-BR"}  # of the sidebar
# HTML, because Quarto makes a figure of a picture that is alone in its paragraph
BADGE_SOURCE = (
    '<a href="https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/nbs/{file}">'
    '<img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open in Colab"></a>'
)
# No import statement: a docs build executes every cell that holds one. `#@param` is a field of Colab's form.
SETUP_SOURCE = """\
#| hide
owner = "{user}" #@param {{type:"string"}}
keep_on_drive = False #@param {{type:"boolean"}}
if "google.colab" in str(get_ipython()):
    if keep_on_drive:
        exec("from google.colab import drive; drive.mount('/content/drive')")
    get_ipython().run_cell_magic("bash", "-e", f'''
        test -d amazon_ft_source || git clone -q --depth 1 -b {branch} https://github.com/{{owner}}/{repo} amazon_ft_source
        bash -e amazon_ft_source/tools/colab.sh''')"""


def addresses(
    text: str,  # Any text
    cfg,  # nbdev's configuration
) -> str:  # The text with this repository's addresses under its owner
    "Put owner and branch into links to the repository, its Colab pages and its site."
    repo = re.escape(cfg.repo)
    text = re.sub(rf"(github\.com/|com/github/)[\w.-]+/{repo}\b", rf"\g<1>{cfg.user}/{cfg.repo}", text)
    text = re.sub(rf"/{cfg.user}/{repo}/(blob|tree)/[\w.-]+/", rf"/{cfg.user}/{cfg.repo}/\1/{cfg.branch}/", text)
    return re.sub(rf"https://[\w.-]+\.github\.io/{repo}\b", cfg.doc_host + cfg.doc_baseurl, text)


def with_head(
    cells: list,  # A notebook's cells
    path: Path,  # The notebook
    cfg,  # nbdev's configuration
) -> list:  # The cells: title and subtitle, in a numbered notebook badge and set-up cell, then all others
    "Put the head in order. What the title's cell holds below the subtitle, nbdev drops: that gets a cell of its own."
    rest = [cell for cell in cells if cell.get("id") not in (BADGE, FACTS, SETUP)]
    facts = [cell for cell in cells if cell.get("id") == FACTS]
    i = next((i for i, cell in enumerate(rest) if cell.source.startswith("# ")), None)
    if i is None:
        sys.exit(f"{path.name}: no cell begins with '# TITLE'; give it one, with the '> subtitle' below")
    names = {"user": cfg.user, "repo": cfg.repo, "branch": cfg.branch, "file": path.name}
    badge = mk_cell(BADGE_SOURCE.format(**names), "markdown", id=BADGE)
    setup = mk_cell(SETUP_SOURCE.format(**names), "code", id=SETUP)
    setup.execution_count = None
    head = [badge, *facts, setup] if path.name[0].isdigit() else []
    rest[i].source, below = TITLE.fullmatch(rest[i].source).groups()
    if below:
        head.append(mk_cell(below, "markdown", id=INTRO))
    return rest[: i + 1] + head + rest[i + 1 :]


def notebook(
    path: Path,  # A notebook
    cfg,  # nbdev's configuration
) -> str:  # Its text, in step
    "The notebook as it should be."
    nb = read_nb(path)
    nb.cells = with_head(nb.cells, path, cfg)
    for cell in nb.cells:
        cell.source = addresses(cell.source, cfg)
    return nb2str(nb)


def with_sidebar(
    text: str,  # `_quarto.yml`
    names: list,  # Of all notebooks
) -> str:  # `_quarto.yml` with all of them in the sidebar
    "List the notebooks by section, in the order of their names."
    lines = ["      - index.ipynb"]
    for section, begin in SECTIONS.items():
        lines += [f"      - section: {section}", "        contents:"]
        lines += [f"          - {name}" for name in sorted(names, reverse=begin == ".*pt-BR") if re.match(begin, name)]
    return re.sub(r"(?<=\n) {6}- index\.ipynb\n( {6}.*\n)*", "\n".join(lines) + "\n", text)


def main() -> int:
    "Rewrite what is out of step, or name it."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when anything would change")
    check = parser.parse_args().check
    cfg = get_config()
    wanted = {path: notebook(path, cfg) for path in sorted(cfg.nbs_path.glob("*.ipynb"))}
    for path in (cfg.config_path / "_quarto.yml", cfg.nbs_path / "nbdev.yml", cfg.config_path / "CITATION.cff"):
        text = addresses(path.read_text(encoding="utf-8"), cfg)
        text = re.sub(r"(?m)^version: \d.*$", f"version: {cfg.version}", text)
        text = re.sub(rf"\b{cfg.lib_name} \d[\w.]*", f"{cfg.lib_name} {cfg.version}", text)
        wanted[path] = with_sidebar(text, [notebook.name for notebook in wanted if notebook.suffix == ".ipynb"])
    stale = {path: text for path, text in wanted.items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(path.relative_to(cfg.config_path), "is out of step: run tools/owner.py" if check else "rewritten")
        if not check:
            path.write_text(text, encoding="utf-8")
    told = f"\n## {cfg.version}\n" in (cfg.config_path / "CHANGELOG.md").read_text(encoding="utf-8")
    if not told:
        print(f"CHANGELOG.md has no section {cfg.version}")
    return 1 if check and (stale or not told) else 0


if __name__ == "__main__":
    sys.exit(main())
