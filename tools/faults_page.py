"""Calls that no browser makes, to every endpoint of the demo's page."""
import json
import os
import signal
import socket
import time
from pathlib import Path

import httpx

SECRET = os.path.join(os.sep, "etc", "passwd")  # a file that no page may serve

PASSWORD, JSON = "a good one", {"content-type": "application/json"}
WIDE = ",".join(f"c{i}" for i in range(200_000)).encode()[:800_000]


def free_port() -> int:
    "A port that nobody listens on."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def values(n: int) -> list:  # Lists, most of them of the wrong length or of values of the wrong kind
    "Forged arguments for an endpoint of `n` arguments."
    odd = [None, {}, [], True, -1, 1e308, "x", "x" * 500_000, "<script>alert(1)</script>", {"path": SECRET}, [[[]]],
           {"path": "../../settings.ini", "meta": {"_type": "gradio.FileData"}}, "\ud800", 10**30]
    return [[], [None] * (n + 5), *([value] * n for value in odd)]


class Visitor:
    "Somebody who sends requests and reads the answers."
    def __init__(self, address: str):
        self.client, self.faults, self.answered = httpx.Client(base_url=address, timeout=120), [], 0

    def answer(self, what: str, method: str, path: str, **request):
        "One request; its answer must be there, and say something if it is an error."
        try:
            got = self.client.request(method, path, **request)
        except httpx.HTTPError as error:
            self.faults.append(f"{what}: {error!r}")
            return None
        text = got.text
        if got.status_code >= 500 or "Traceback" in text or got.status_code >= 400 and len(text) < 10:
            self.faults.append(f"{what}: status {got.status_code}: {text[:100]}")
        return got

    def ask(self, what: str, fn: int, data, session: str):
        "A call by the queue, as browsers make it, until it is answered."
        body = json.dumps(dict(data=data, fn_index=fn, session_hash=session)).encode()
        got = self.answer(f"join {what}", "POST", "/gradio_api/queue/join", content=body, headers=JSON)
        if got is None or got.status_code != 200:
            return
        with self.client.stream("GET", "/gradio_api/queue/data", params=dict(session_hash=session)) as stream:
            for line in stream.iter_lines():
                said = json.loads(line.removeprefix("data:") or "{}") if line.startswith("data:") else {}
                if said.get("msg") in ("process_completed", "unexpected_error"):
                    output, self.answered = said.get("output") or {}, self.answered + 1
                    if not said.get("success") and not (output.get("error") or said.get("message")):
                        self.faults.append(f"{what}: an error without a message: {line[:150]}")
                if said.get("msg") in ("close_stream", "unexpected_error"):
                    return


def _login(visitor):
    "Wrong passwords wait longer each time; the right one opens."
    waits = []
    for attempt in ("", "guest", "wrong"):
        start = time.perf_counter()
        visitor.answer("wrong password", "POST", "/login", data=dict(username="guest", password=attempt))
        waits.append(time.perf_counter() - start)
    if sum(waits) < 1 or waits[-1] <= waits[0]:
        visitor.faults.append(f"wrong passwords are answered after {', '.join(f'{wait:.2f}' for wait in waits)} s")
    right = visitor.answer("right password", "POST", "/login", data=dict(username="guest", password=PASSWORD))
    if right is None or right.status_code != 200:
        visitor.faults.append("the right password does not open the page")


def _calls(visitor):
    "Every endpoint with forged arguments, by the queue and directly."
    config = visitor.answer("config", "GET", "/config").json()
    for each in config["dependencies"]:
        name, fn, n = each["api_name"], each["id"], len(each["inputs"])
        for i, data in enumerate(values(n)):
            visitor.ask(f"{name}({str(data)[:40]})", fn, data, f"session{fn}x{i}")
        for body in (b"", b"{", b"[]", b"null", b'{"data": 5}', b'{"data": {"a": 1}}', b"\xff\xfe",
                     b'{"data": ' + b"[" * 9000):
            for path in (f"/gradio_api/call/{name}", f"/gradio_api/run/{name}", f"/gradio_api/api/{name}"):
                visitor.answer(f"{path} {body[:20]}", "POST", path, content=body, headers=JSON)
    for fn in (-1, 9999, "x", None, [], 1e9):
        visitor.ask(f"function {fn}", fn, ["x"], "nobody")
    for body in (b"", b"{", b"[]", b"null", b'{"data": 5}', b'{"fn_index": 0}',
                 b'{"fn_index": 0, "data": null, "session_hash": 7}'):
        visitor.answer(f"join {body}", "POST", "/gradio_api/queue/join", content=body, headers=JSON)
    for path in (f"/gradio_api/file={SECRET}", "/gradio_api/file=settings.ini", "/nowhere"):
        got = visitor.answer(path, "GET", path)
        if got is not None and got.status_code == 200:
            visitor.faults.append(f"{path} is served")
    if visitor.answered < 50:
        visitor.faults.append(f"only {visitor.answered} calls got through to an endpoint: does this check still work?")


def _wide_file(visitor):
    "A header of 200,000 columns keeps nobody waiting."
    got = visitor.answer("upload", "POST", "/gradio_api/upload", files=dict(files=("wide.csv", WIDE + b"\n1\n")))
    config = visitor.answer("config", "GET", "/config").json()
    fn = next(each["id"] for each in config["dependencies"] if each["api_name"] == "catalogue")
    file = dict(path=got.json()[0], meta={"_type": "gradio.FileData"}, orig_name="wide.csv")
    start = time.perf_counter()
    visitor.ask("a wide file", fn, [file, "title", "utf-8", "Describe it"], "wide")
    if time.perf_counter() - start > 10:
        visitor.faults.append(f"a header of 200,000 columns takes {time.perf_counter() - start:.0f} s")


def forged(start: Path, place, run, manners, folder: Path) -> list:
    "The page under a password, and a visitor who tries everything."
    place(start, folder)
    port, visitor = free_port(), None
    def visit(pid):
        nonlocal visitor
        for _ in range(300):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        visitor = Visitor(f"http://127.0.0.1:{port}")
        try:
            _login(visitor)
            _calls(visitor)
            _wide_file(visitor)
        finally:
            os.kill(pid, signal.SIGINT)
    def before():
        os.environ["AMAZON_FT_PASSWORD"] = PASSWORD
    ran = run(folder, f"amazon_ft_demo --base tiny --root ws --port {port}", before, meanwhile=visit)
    n = ran.err.count("Traceback")
    return visitor.faults + ([f"{n} tracebacks on stderr: {ran.err[-500:]}"] if n else manners(ran, (0, 130)))
