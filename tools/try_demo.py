"""Use the demo as visitors do: in headless Chromium, against `amazon_ft_demo` as installed.

Usage: python tools/try_demo.py [--root amazon_ft_runs] [--shots FOLDER]      after amazon_ft_quickstart
Takes the Chromium or Chrome on the PATH, else the one that `playwright install chromium` brings. Fails on the first
thing that does not work, on an error in the browser's console and on a request to any other machine.
"""
import argparse
import csv
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, expect, sync_playwright

TITLE = "Norvelle Bamboo Cutting Board, large, Ivory White"
OWN_QUESTION = "Is it <b>safe</b> in a dishwasher?"
MARKUP = "<img src=x onerror='window.harm = 1'> <b>Bamboo</b> Cutting Board"


def installed_browser() -> str:  # Its path; `None` leaves the choice to Playwright
    "The Chromium or Chrome of this machine."
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def served(
    root: str,  # The workspace
    port: int,  # Where to listen
):
    "The address of a running demo, killed without warning at the end, as machines are."
    script = shutil.which("amazon_ft_demo", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    start, process = time.perf_counter(), subprocess.Popen([script, "--root", root, "--port", str(port)])
    try:
        while process.poll() is None:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        assert process.poll() is None, "amazon_ft_demo ended at once"
        print(f"listening after {time.perf_counter() - start:.1f} s")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def tab_to(
    page: Page,
    selector: str,  # Of the element that the keyboard has to reach
):
    "Press Tab until an element has the focus."
    for _ in range(80):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the keyboard does not reach {selector}")


def before_and_after(page: Page):
    "A title by keyboard alone; both columns fill and differ; a question of one's own; markup and a megabyte are text."
    texts = {name: page.locator(f"#{name} .textfield") for name in ("base", "tuned")}
    tab_to(page, "#title textarea")
    page.keyboard.type(TITLE)
    start = time.perf_counter()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#base .textfield')?.innerText.trim()")
    print(f"first word after {time.perf_counter() - start:.2f} s")
    expect(texts["tuned"]).to_contain_text("cutting board")
    expect(page.locator("#tuned-speed")).to_contain_text("tokens/s")
    expect(page.locator("#nearest details")).to_have_count(3)
    settled(page)
    assert texts["base"].inner_text() != texts["tuned"].inner_text()
    page.locator("#tuned button", has_text="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == texts["tuned"].inner_text().strip()

    page.fill("#title textarea", "Bamboo Cutting Board")  # without a brand, so one is made up and marked
    page.click("#ask")
    settled(page)
    brand = texts["tuned"].locator(".highlighted .text").first.inner_text()
    page.locator("#tuned button", has_text="Copy").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert f" {brand} " in copied, f"a marked specific is glued to its neighbour: {copied}"

    page.fill("#title textarea", MARKUP)
    page.click("#ask")
    settled(page)
    assert page.evaluate("window.harm") is None and page.locator("#nearest img, #base img, #tuned img").count() == 0

    page.locator("button", has_text="Clear").click()
    expect(page.locator("#tuned-speed")).to_have_text("")
    page.fill("#title textarea", TITLE)
    for question, answer in (("x" * 501, "501 characters"), (OWN_QUESTION, "tokens/s")):
        page.fill("#question input", question)
        page.keyboard.press("Enter")
        page.click("#ask")
        expect(page.get_by_text(answer).first).to_be_visible()
    settled(page)
    expect(page.locator("#question input")).to_have_value(OWN_QUESTION)

    page.fill("#title textarea", "x" * 1_000_000)
    page.click("#ask")
    expect(page.get_by_text("1,000,000 characters").first).to_be_visible()
    page.locator("button", has_text="Clear").click()
    expect(page.locator("#title textarea")).to_have_value("")
    expect(page.locator("#nearest details")).to_have_count(0)


def settled(page: Page):
    "Wait until the answers no longer grow."
    text = None
    while text != (text := page.locator("#tuned-speed").inner_text()) or not text:
        page.wait_for_timeout(1000)


def catalogue(
    page: Page,
    folder: Path,  # Where files may be written
):
    "A CSV file goes in, the same rows come out with descriptions; one without titles gets an answer."
    rows = [dict(sku=f"00{i}", title=f"Norvelle Bamboo Cutting Board, {i} inch") for i in range(60)]
    with open(folder / "titles.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["sku", "title"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "untitled.csv").write_text("sku,name\n001,Kettle\n", encoding="utf-8")
    page.get_by_role("tab", name="Catalogue").click()
    for name in ("untitled", "titles"):
        page.set_input_files("#source input[type=file]", folder / f"{name}.csv")
        expect(page.locator("#source")).to_contain_text(name)
        page.click("#all")
        if name == "untitled":
            expect(page.get_by_text("no column 'title'").first).to_be_visible()
            page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
    expect(page.locator(".progress-bar, .progress-level, .meta-text-center").first).to_be_attached()
    link = page.locator("#described a[download]").first
    expect(link).to_be_visible(timeout=240_000)
    with page.expect_download() as download:
        link.click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        described = list(csv.DictReader(file))
    assert [dict(sku=row["sku"], title=row["title"]) for row in described] == rows
    assert all(row["generated_description"] for row in described)


def rate(
    page: Page,
    rater: str,
    votes: int,  # How many to cast
) -> list:  # What stands on the page then: the title and both texts
    "Give a name and vote, by keyboard alone."
    tab_to(page, "[role=tab]")
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    tab_to(page, "#rater input, #rater textarea")
    page.keyboard.type(rater)
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("rated")
    done = int(page.locator("#status").inner_text().split()[0])
    for i in range(votes):
        tab_to(page, "#vote_a")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text(f"{done + i + 1} of")
    return [box.input_value() for box in page.locator("[role=tabpanel]:visible textarea[disabled]").all()]


def main() -> int:
    "All of it, on a desktop and on a telephone."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="amazon_ft_runs", help="workspace of a finished amazon_ft_quickstart")
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    args = parser.parse_args()
    shot = lambda page, name: args.shots and page.screenshot(path=args.shots / f"{name}.png", full_page=True)
    port, rater, strange = free_port(), f"rater {time.time_ns()}", []
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed_browser(), args=["--no-sandbox"])

        def visit(address, **kwargs):
            context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **kwargs)
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.on("console", lambda message: strange.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: strange.append(str(error)))
            context.on("request", lambda request: strange.append(request.url) if not request.url.startswith(
                (address, "data:", "blob:")) else None)
            page.goto(address)
            page.wait_for_selector("#ask")
            return page

        expect.set_options(timeout=120_000)
        with served(args.root, port) as address:
            page = visit(address, viewport=dict(width=1280, height=900))
            before_and_after(page)
            page.fill("#title textarea", TITLE)
            page.click("#ask")
            settled(page)
            shot(page, "desktop")
            catalogue(page, Path(folder))
            shot(page, "catalogue")
            page.reload()
            page.wait_for_selector("#ask")
            following = rate(page, rater, 2)
            shot(page, "rating")
            page.context.close()
        with served(args.root, port) as address:
            page = visit(address, viewport=dict(width=390, height=844), is_mobile=True, has_touch=True)
            assert rate(page, rater, 0) == following, "the vote did not survive the restart"
            assert page.locator("#status").inner_text().startswith("2 of")
            shot(page, "rating_phone")
            page.get_by_role("tab", name="Compare").click()
            page.fill("#title textarea", TITLE)
            page.tap("#ask")
            settled(page)
            shot(page, "phone")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            page.context.close()
        browser.close()
    assert not strange, strange
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
