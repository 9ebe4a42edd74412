"""Render the site and README.md without Quarto: nbdev's own processing, the same `_quarto.yml`, pandoc from PyPI.

Usage: python tools/docs.py              _docs/*.html, then a check of links, anchors, pictures' texts and the READMEs
       python tools/docs.py --readme     README.md and README.pt-BR.md, from index.ipynb and index.pt-BR.ipynb
The published site is Quarto's. This one shows the same text, code, outputs, callouts, tables and links; it has
no search and no copy buttons, and refuses cell options that only Quarto knows.
"""
import argparse
import base64
import html
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pypandoc
import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs

HERE = Path(__file__).resolve().parent
OPTIONS = {"echo", "output", "include", "eval", "code-fold", "code-summary", "fig-cap", "fig-alt"}
GFM = "gfm-raw_attribute"
IMAGES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}
LEAKS = re.compile(r":::|#\| ?\w|\{\{<|(?<!\w)@(?:fig|tbl|sec)-\w+|\?@\w+")
PRE_LEAKS = re.compile(r"\]\(http| at 0x[0-9a-f]+|VAR_(?:POSITIONAL|KEYWORD)")  # see tools/pages.py


class Page(NamedTuple):
    "A notebook on its way to the site."
    name: str  # The notebook's file name
    out: str  # The page's file name
    title: str
    subtitle: str
    markdown: str
    lang: str


def pandoc(
    text: str,  # What to convert
    source: str,  # pandoc's name of its format
    target: str,  # pandoc's name of the wanted format
    *args: str,  # Further arguments
) -> str:  # The converted text
    "Convert `text`; a warning of pandoc's is an error."
    command = [pypandoc.get_pandoc_path(), "--fail-if-warnings", "-f", source, "-t", target, *args]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout


def fence(
    text: str,  # Verbatim text, which may hold fences itself
    attributes: str = "",  # What follows the opening fence
) -> str:  # A fenced block
    "Put `text` between fences longer than any inside."
    ticks = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`{3,}", text))])
    return f"{ticks} {attributes}".rstrip() + f"\n{text}\n{ticks}"


def options(
    source: str,  # A code cell's source
) -> tuple:  # Its `#| key: value` options and the code below them
    "Split off Quarto's cell options."
    lines = source.splitlines()
    count = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    found = yaml.safe_load("\n".join(line[2:].strip() for line in lines[:count])) or {}
    unknown = found.keys() - OPTIONS
    if "%" in str(found.get("fig-alt", "")):
        raise SystemExit(f"Quarto takes no % in a fig-alt, write `percent`: {found['fig-alt']}")
    if unknown:
        raise SystemExit(f"cell options that tools/docs.py cannot render: {', '.join(sorted(unknown))}\n{source}")
    return found, "\n".join(lines[count:]).strip("\n")


def figure(
    data: dict,  # An output's representations
    cell: dict,  # The cell's options
    folder: Path,  # Where the page goes
    stem: str,  # The picture's path below `folder`, without ending
) -> str:  # Markdown; empty when the output is no picture
    "Write a picture beside its page."
    mime = next((mime for mime in IMAGES if mime in data), None)
    if mime is None:
        return ""
    name = f"{stem}.{IMAGES[mime]}"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    content = "".join(data[mime])
    (folder / name).write_bytes(content.encode() if mime == "image/svg+xml" else base64.b64decode(content))
    alt = html.escape(cell.get("fig-alt", cell.get("fig-cap", "")))
    return f"![{cell.get('fig-cap', '')}]({name})" + (f'{{alt="{alt}"}}' if alt else "")


def output_markdown(
    output: dict,  # An output of a code cell
    cell: dict,  # The cell's options
    folder: Path,  # Where the page goes
    stem: str,  # Where a picture would go, below `folder`
    readme: bool,  # Whether for README.md
) -> str:  # Markdown
    "One output, in the representation that a page shows best."
    data = output.get("data", {})
    if output["output_type"] == "stream":
        return fence("".join(output["text"]).rstrip())
    if output["output_type"] == "error":
        return fence(f"{output['ename']}: {output['evalue']}")
    if "text/markdown" in data and (readme or "text/html" not in data):
        return "".join(data["text/markdown"])
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
        return pandoc(table, "html-native_divs", "gfm", "--wrap=none") if readme else fence(table, "{=html}")
    return figure(data, cell, folder, stem) or fence("".join(data.get("text/plain", "")))


def code_markdown(
    code: str,  # The cell's code
    cell: dict,  # The cell's options
    readme: bool,  # Whether for README.md
) -> str:  # Markdown
    "The code of a cell, folded when its options say so."
    block = fence(code, "python" if readme else "{.python}")
    fold = cell.get("code-fold")
    if not fold:
        return block
    opened = " open" if fold == "show" else ""
    return f"<details{opened}>\n<summary>{cell.get('code-summary', 'Code')}</summary>\n\n{block}\n\n</details>"


def page(
    path: Path,  # A notebook that nbdev has processed
    folder: Path,  # Where the page goes
    readme: bool = False,  # Whether for README.md
) -> Page:  # The page
    "A processed notebook in pandoc's markdown."
    front, parts, number = {}, [], 1  # Quarto counts the front matter as cell 1 when it names pictures
    for cell in read_nb(path).cells:
        if cell.cell_type == "raw":
            front.update(yaml.safe_load(cell.source.strip().strip("-")) or {})
        elif cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            number += 1
            found, code = options(cell.source)
            if found.get("include") is False:
                continue
            if code and found.get("echo") is not False:
                parts.append(code_markdown(code, found, readme))
            for i, output in enumerate(cell.outputs if found.get("output") is not False else [], 1):
                stem = f"{path.stem}_files/figure-{'commonmark' if readme else 'html'}/cell-{number}-output-{i}"
                text = output_markdown(output, found, folder, stem, readme)
                bare = readme or found.get("output") == "asis"
                parts.append(text if bare else f"::: cell-output\n{text}\n:::")
    out = front.get("output-file", f"{path.stem}.html")
    text, lang = "\n\n".join(parts) + "\n", front.get("lang", "en")
    return Page(path.name, out, front.get("title", path.stem), front.get("description", ""), text, lang)


@cache
def processed() -> list:  # Paths of the notebooks, processed
    "nbdev's own processing: documentation of symbols, links of names in backticks, hidden cells gone."
    cfg = get_config()
    if cfg.lib_name not in NbdevLookup().entries:
        raise SystemExit(f"{cfg.lib_name} is not installed here, so no name could be linked: pip install -e .")
    os.environ["PYTHONWARNINGS"] = "error:Found cells containing imports and other code"
    return sorted(proc_nbs(force=True).glob("*.ipynb"))


def title_cells() -> list:  # Complaints
    "nbdev makes a page's title of the first cell and drops whatever else stands in it."
    found = []
    for path in sorted(get_config().nbs_path.glob("*.ipynb")):
        title = next((c.source for c in read_nb(path).cells if c.source.startswith("# ")), "")
        lines = [line for line in title.splitlines() if line.strip()]
        if len(lines) != 2 or not lines[1].startswith("> "):
            found.append(f"{path.name}: the title's cell takes '# TITLE' and one line '> SUBTITLE', the rest is lost")
    return found


def link(
    item,  # An entry of `_quarto.yml`'s navigation: a name, or a mapping with href and text
    pages: dict,  # Pages by notebook name
    current: str = "",  # The page that shows the link
    css: str = "",  # Class of the link
) -> str:  # HTML
    "A link of the navigation."
    item = {"href": item} if isinstance(item, str) else item
    target = pages.get(item["href"])
    if item["href"].endswith(".ipynb") and target is None:
        raise SystemExit(f"_quarto.yml names {item['href']}, which is not in nbs/")
    href = target.out if target else item["href"]
    text = item.get("text") or target.title
    classes = f"{css} active" if href == current else css
    return f'<a class="{classes.strip()}" href="{href}">{html.escape(text)}</a>'


def sidebar(
    items: list,  # `_quarto.yml`'s sidebar
    pages: dict,  # Pages by notebook name
    current: str,  # The page that shows it
    css: str = "",  # Class of its links
) -> str:  # HTML
    "The sidebar, sections included."
    parts = []
    for item in items:
        if isinstance(item, dict) and "section" in item:
            parts += [f"<b>{html.escape(item['section'])}</b>", sidebar(item["contents"], pages, current, "inner")]
        else:
            parts.append(link(item, pages, current, css))
    return "\n".join(parts)


def reading_order(
    items: list,  # `_quarto.yml`'s sidebar
) -> list:  # Notebook names
    "The sidebar's pages, one after another."
    names = []
    for item in items:
        if isinstance(item, dict) and "section" in item:
            names += reading_order(item["contents"])
        else:
            names.append(item if isinstance(item, str) else item["href"])
    return names


def around(
    name: str,  # A notebook
    items: list,  # `_quarto.yml`'s sidebar
    pages: dict,  # Pages by notebook name
) -> str:  # HTML
    "Links to the page before and the page after."
    order = reading_order(items)
    if name not in order:
        raise SystemExit(f"{name} stands in nbs/ but not in the sidebar of _quarto.yml")
    i = order.index(name)
    before = [f'<a href="{p.out}">← {html.escape(p.title)}</a>' for p in map(pages.get, order[max(i - 1, 0) : i])]
    after = [f'<a href="{p.out}">{html.escape(p.title)} →</a>' for p in map(pages.get, order[i + 1 : i + 2])]
    return "".join(before or ["<span></span>"]) + "".join(after)


def local_links(
    text: str,  # A page's HTML
    pages: dict,  # Pages by notebook name
) -> str:  # The HTML with links that stay in the folder
    "Point links to the published site and to notebooks at the pages beside this one."
    cfg = get_config()
    text = text.replace(f'href="{cfg.doc_host}{cfg.doc_baseurl}/"', 'href="index.html"')
    text = re.sub(rf'(href|src)="{re.escape(cfg.doc_host + cfg.doc_baseurl)}/', r'\1="', text)
    return re.sub(r'href="([^"#:]+\.ipynb)', lambda m: f'href="{pages[m[1]].out if m[1] in pages else m[1]}', text)


class Links(HTMLParser):
    "The anchors, the links, the prose and the verbatim text of a page, and its pictures without a text in their place."

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.targets, self.prose, self.pre, self.mute, self.verbatim = set(), [], [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get("id"))
        self.targets += [attrs[key] for key in ("href", "src") if attrs.get(key)]
        if tag == "img" and not attrs.get("alt", "").strip():
            self.mute.append(attrs.get("src"))
        self.verbatim += tag in ("pre", "code")

    def handle_endtag(self, tag):
        self.verbatim -= tag in ("pre", "code")

    def handle_data(self, data):
        (self.pre if self.verbatim else self.prose).append(data)


def broken(
    folder: Path,  # The rendered site
) -> list:  # Complaints
    "Links within the site and into the repository that lead nowhere, and markup that was meant for Quarto."
    cfg = get_config()
    source = re.compile(rf"(?:github\.com|com/github)/{cfg.user}/{cfg.repo}/blob/{cfg.branch}/([^#]+)")
    pages = {path.name: Links(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))}
    found = []
    for name, content in pages.items():
        for target in content.targets:
            inside = source.search(target)
            if inside and not (cfg.config_path / inside[1]).exists():
                found.append(f"{name}: the repository has no {inside[1]}")
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            if not (folder / (file or name)).is_file():
                found.append(f"{name}: no such page: {target}")
            elif anchor and anchor not in pages[file or name].ids:
                found.append(f"{name}: no such anchor: {target}")
        found += [f"{name}: no alternative text, give the cell a fig-alt: {image}" for image in content.mute]
        found += [f"{name}: markup that was not rendered: {leak}" for leak in LEAKS.findall("".join(content.prose))]
        found += [f"{name}: in a code block: {leak}" for leak in PRE_LEAKS.findall("".join(content.pre))]
    return found


def render_site() -> list:  # Complaints
    "Every notebook as a page of _docs, and what is wrong with them."
    cfg = get_config()
    refresh_quarto_yml()
    site = yaml.safe_load((cfg.config_path / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    cfg.doc_path.mkdir()
    pages = {p.name: p for p in (page(path, cfg.doc_path) for path in processed())}
    for path in (HERE / "docs.css", *cfg.nbs_path.iterdir()):
        if path.suffix in (".css", ".svg", ".png", ".jpg"):
            shutil.copy(path, cfg.doc_path)
    bar = [link(item, pages) for item in site["navbar"]["left"]]
    bar += [link(item, pages, css="right") for item in site["navbar"]["right"]]
    items = site["sidebar"]["contents"]
    sides = [pandoc(site["page-footer"][side], "markdown", "html5") for side in ("left", "right")]
    shared = {"footer": "".join(sides), "favicon": site["favicon"], "cardstyle": site["twitter-card"]["card-style"]}
    shared["card"] = f"{cfg.doc_host}{cfg.doc_baseurl}{site['image']}"
    for p in pages.values():
        variables = {"site": cfg.title, "navbar": "\n".join(bar), "sidebar": sidebar(items, pages, p.out)}
        variables["around"] = around(p.name, items, pages)
        variables |= shared
        variables["lang"] = p.lang
        args = [f"--variable={key}={value}" for key, value in variables.items()]
        args += [f"--metadata=title:{p.title}", f"--metadata=subtitle:{p.subtitle}", "--toc", "--toc-depth=3"]
        args += ["--standalone", "--mathml", f"--template={HERE / 'docs.html'}", f"--lua-filter={HERE / 'docs.lua'}"]
        text = pandoc(p.markdown, "markdown+emoji", "html5", *args)
        (cfg.doc_path / p.out).write_text(local_links(text, pages), encoding="utf-8")
    print(f"{len(pages)} pages in {cfg.doc_path.name}/")
    return title_cells() + broken(cfg.doc_path)


def render_readme(
    folder: Path,  # Where the READMEs go, and their figures beside them
):
    "README.md, and README.pt-BR.md in Portuguese, as GitHub shows them."
    readmes = {get_config().readme_nb: "README.md", "index.pt-BR.ipynb": "README.pt-BR.md"}
    callouts = f"--lua-filter={HERE / 'docs.lua'}"
    for path in (path for path in processed() if path.name in readmes):
        index = page(path, folder, readme=True)
        markdown = re.sub(r"\n*<!-- en \w+ -->", "", index.markdown)  # see tools/portuguese.py
        text = pandoc(markdown, "markdown-implicit_figures+emoji", GFM, "--wrap=auto", callouts)
        (folder / readmes[path.name]).write_text(f"# {index.title}\n\n\n{text}", encoding="utf-8")


def stale_readme() -> list:  # Complaints
    "Files of the README that differ from what the index renders to, and links in it that lead nowhere."
    root = get_config().config_path
    with TemporaryDirectory() as folder:
        render_readme(Path(folder))
        files = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
        fresh = {path: (Path(folder) / path).read_bytes() for path in files}
    found = []
    for path, content in fresh.items():
        if not (root / path).is_file() or (root / path).read_bytes() != content:
            found.append(f"{path} is not what the index renders to: python tools/docs.py --readme")
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(root.glob("README*.md")))
    for picture in re.findall(r"(?:!\[[^]]*\]\(|src=\")((?!https:)[^)\s\"]+)", text):
        found.append(f"README.md: a picture needs an absolute address, for GitHub, PyPI and the site alike: {picture}")
    for target in re.findall(r"\]\(([^)\s]+)", text):
        if not re.match(r"[a-z]+:|#", target) and not (root / target).exists():
            found.append(f"README.md: no such file: {target}")
    return found


def main() -> int:
    "Render, check, and say what is wrong."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", action="store_true", help="write README.md")
    args = parser.parse_args()
    found = []
    if args.readme:
        render_readme(get_config().config_path)
    else:
        found = render_site() + stale_readme()
    print("\n".join(found) or "ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
