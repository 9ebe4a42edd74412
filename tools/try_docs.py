"""Open the rendered site as readers do: every page of _docs in headless Chromium, wide and narrow, light and dark.

Usage: python tools/try_docs.py [--shots FOLDER]      after tools/docs.py
Takes the Chromium or Chrome on the PATH, else the one that `playwright install chromium` brings. Fails on errors in
the console, requests that fail or go to other machines, links and anchors that lead nowhere, pictures that do not load
or have no text, markup meant for Quarto, pages wider than the screen and text too pale to read. Badges are fetched from
nobody, only counted.
"""
import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urljoin, urlsplit

from nbdev.config import get_config
from playwright.sync_api import Page, sync_playwright

from docs import LEAKS
from try_demo import installed_browser

BADGES = ("https://github.com/", "https://colab.research.google.com/assets/", "https://img.shields.io/")
BADGE = '<svg xmlns="http://www.w3.org/2000/svg" width="120" height="20"><path fill="#888" d="M0 0h120v20H0z"/></svg>'
SCREENS = {"wide": dict(width=1280, height=900), "narrow": dict(width=390, height=844)}
LEAST_CONTRAST = 4.5  # WCAG 2.2, level AA, for text of ordinary size

# What only a browser knows of a page: prose, pictures, anchors, links, elements that stick out, pale text.
LOOK = """() => {
  const shown = e => e.getClientRects().length > 0;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const prose = [], pale = new Set();
  const channel = c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > .99) return c;
    }
    return [255, 255, 255];
  };
  for (let node; node = walker.nextNode();) {
    const e = node.parentElement, text = node.data.trim();
    if (!text || !shown(e) || e.closest("svg, script, style")) continue;
    if (!e.closest("pre, code")) prose.push(text);
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    const contrast = (a + .05) / (b + .05);
    if (contrast < LEAST) pale.add(`${contrast.toFixed(1)}: ${text.slice(0, 40)}`);
  }
  const scrolls = e => e && (/auto|scroll|hidden/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  const room = document.documentElement.clientWidth;
  return {
    prose: prose.join(" "), pale: [...pale],
    images: [...document.images].map(i => ({src: i.src, loaded: i.complete && i.naturalWidth > 0, alt: i.alt.trim()})),
    ids: [...document.querySelectorAll("[id]")].map(e => e.id),
    links: [...document.querySelectorAll("a[href]")].map(a => a.href),
    wide: document.documentElement.scrollWidth > room,
    outside: [...document.querySelectorAll("body *")].filter(e => shown(e) && e.getBoundingClientRect().right > room + 1
      && !scrolls(e.parentElement)).slice(0, 3).map(e => e.outerHTML.slice(0, 80)),
  };
}""".replace("LEAST", str(LEAST_CONTRAST))


class Quiet(SimpleHTTPRequestHandler):
    "A server of files that keeps no log."

    def log_message(self, *args):
        pass


def complaints(
    page: Page,
    address: str,  # Of the site
) -> tuple:  # What is wrong with the page as it stands, and its links and anchors
    "Look at an open page."
    seen = page.evaluate(LOOK)
    found = [f"not loaded: {image['src']}" for image in seen["images"] if not image["loaded"]]
    found += [f"no alternative text: {image['src']}" for image in seen["images"] if not image["alt"]]
    found += [f"markup that was not rendered: {leak}" for leak in LEAKS.findall(seen["prose"])]
    found += [f"contrast {pale}" for pale in seen["pale"]]
    if seen["wide"]:
        found.append(f"wider than the screen: {seen['outside']}")
    return found, [link for link in seen["links"] if link.startswith(address)], seen["ids"]


def lost(
    links: dict,  # Page name: its links within the site
    ids: dict,  # Page name: its anchors
    folder: Path,  # The site
) -> list:  # Complaints
    "Links that lead to no file or to no anchor."
    found = []
    for name, targets in links.items():
        for target in sorted(set(targets)):
            parts = urlsplit(target)
            file = unquote(parts.path).lstrip("/") or "index.html"
            if not (folder / file).is_file():
                found.append(f"{name}: no such page: {file}")
            elif parts.fragment and unquote(parts.fragment) not in ids.get(file, ()):
                found.append(f"{name}: no such anchor: {file}#{parts.fragment}")
    return found


def main() -> int:
    "Every page, on both screens, in both colour schemes."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    args = parser.parse_args()
    folder = get_config().doc_path
    names = [path.name for path in sorted(folder.glob("*.html"))]
    if not names:
        sys.exit(f"{folder.name}/ holds no page: run tools/docs.py")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    found, links, ids, badges = [], {}, {}, set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser(), args=["--no-sandbox"])
        for screen, size in SCREENS.items():
            for scheme in ("light", "dark"):
                strange = []

                def answer(route):
                    url = route.request.url
                    if url.startswith((address, "data:")):
                        route.continue_()
                    elif url.startswith(BADGES) and route.request.resource_type == "image":
                        badges.add(url)
                        route.fulfill(body=BADGE, content_type="image/svg+xml")
                    else:
                        strange.append(f"request to another machine: {url}")
                        route.abort()

                context = browser.new_context(viewport=size, color_scheme=scheme)
                context.route("**/*", answer)
                page = context.new_page()
                page.on("console", lambda message: strange.append(message.text) if message.type == "error" else None)
                page.on("pageerror", lambda error: strange.append(str(error)))
                page.on("response", lambda got: None if got.ok else strange.append(f"{got.status} {got.url}"))
                for name in names:
                    page.goto(urljoin(address, name), wait_until="load")
                    wrong, links[name], ids[name] = complaints(page, address)
                    found += [f"{name}, {screen}, {scheme}: {what}" for what in wrong + strange]
                    strange.clear()
                    if args.shots:
                        args.shots.mkdir(parents=True, exist_ok=True)
                        page.screenshot(path=args.shots / f"{Path(name).stem}_{screen}_{scheme}.png", full_page=True,
                                        timeout=300_000)  # milliseconds: a long page, and perhaps a slow machine
                context.close()
        browser.close()
    server.shutdown()
    found += lost(links, ids, folder)
    n_links = sum(map(len, links.values()))
    print(f"{len(names)} pages, {n_links} links within the site, {len(badges)} badges not fetched")
    print("\n".join(found) or "ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
