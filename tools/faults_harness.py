"""Run console scripts of this project in forked processes, disturb them at a write of your choice, judge the result.

Everything heavy is imported once, in the parent; each command is a `fork` away. Python tells an audit hook about each
file that is about to be opened, renamed or removed: this is where a run is photographed, interrupted or told that the
disk is full. The state of the disk at such a moment is what `kill -9` would leave.
"""
import configparser
import csv
import fcntl
import importlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink",
          "shutil.rmtree", "sqlite3.connect"}  # what CPython announces before it changes a file system
PROGRESS = re.compile(r"\d+%\||\?it/s|^\s*$")
VOLATILE = {"created", "seal", "tokens_per_s", "mtime_ns"}  # in manifests: what differs between two equal runs
LEFTOVER = re.compile(r"\.(partial|old|parts|removed)\b")
PIPE = 1 << 20
LIMIT_S = 900  # a run that takes longer hangs: SIGALRM ends it
KNOWN = set()  # lines on stderr that undisturbed runs write too: said once, not at each check


class Run(NamedTuple):
    "What became of one command."
    command: str  # As typed
    code: int  # Exit code; negative for a signal
    out: str
    err: str  # Without progress bars
    modules: list  # Loaded in the end


def scripts() -> dict:  # Name to `module:function`
    "The console scripts of settings.ini."
    config = configparser.ConfigParser(interpolation=None)
    config.read(CHECKOUT / "settings.ini", encoding="utf-8")
    return dict(line.strip().split("=") for line in config["DEFAULT"]["console_scripts"].splitlines())


def load(
    names: list,  # Of modules
):
    "Import what a finished run had imported, so that the next fork finds it; made-up modules are passed over."
    for name in names:
        if name not in sys.modules and not name.startswith(("__", "_pytest")):
            with suppress(ImportError, AttributeError, OSError, RuntimeError, ValueError):
                importlib.import_module(name)


def watch(
    folder: Path,  # Whose changes count
    at,  # Called with the number of the event, its name and its path, before it happens
):
    "Tell `at` of each change below `folder` from now on, until this process ends."
    folder, count, busy = os.path.abspath(folder), 0, False
    def hook(name, args):
        nonlocal count, busy
        if busy or name not in EVENTS or not args or isinstance(args[0], int):
            return
        if name == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        path, below = os.fsdecode(args[0]), args[-1] if name in ("os.remove", "os.rmdir", "os.mkdir") else None
        if isinstance(below, int) and below >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{below}"), path)
        path = os.path.abspath(path)
        if path.startswith(folder):
            busy, count = True, count + 1
            try:
                at(count, name, path)
            finally:
                busy = False
    sys.addaudithook(hook)


def run(
    folder: Path,  # Where to stand
    command: str or list,  # A console script and its arguments
    before=None,  # Called in the new process just before the command
    meanwhile=None,  # Called in this process with the other one's number, while the command runs
) -> Run:
    "Run a console script in a process of its own."
    argv = command.split() if isinstance(command, str) else command
    pipes = [os.pipe() for _ in range(3)]
    for _, end in pipes:
        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE)
    pid = os.fork()
    if not pid:
        _become(folder, argv, before, [end for _, end in pipes])
    for _, end in pipes:
        os.close(end)
    if meanwhile:
        meanwhile(pid)
    texts = []
    for end, _ in pipes:
        with open(end, encoding="utf-8", errors="backslashreplace", newline="") as stream:
            texts.append(stream.read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    err = [line for line in re.split(r"[\r\n]+", texts[1]) if not PROGRESS.search(line) and line not in KNOWN]
    return Run(" ".join(map(ascii, argv)).replace("'", ""), code, texts[0], "\n".join(err), texts[2].split())


def _become(folder, argv, before, ends):
    "The forked process: the command, then the end, with no handler of the parent left."
    code = 1
    try:
        for target, end in zip((1, 2), ends):
            os.dup2(end, target)
        sys.stdin = open(os.devnull)
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
                                  for n in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LIMIT_S)
        os.chdir(folder)
        sys.argv = argv
        module, function = scripts()[argv[0]].split(":")
        script = getattr(importlib.import_module(module), function)
        if before:
            before()
        script()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # as the interpreter itself would show it
        traceback.print_exc()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(ends[2], "\n".join(sys.modules).encode())
    os._exit(code)


def raising(
    folder: Path,  # Whose changes count
    n: int,  # At which one
    error,  # An exception to raise there, or `SIGINT`
):
    "For `before`: the `n`-th change below `folder` fails, or is interrupted."
    def at(count, name, path):
        if count == n:
            if error == signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
            else:
                raise OSError(error, os.strerror(error), path)
    return lambda: watch(folder, at)


def states(
    folder: Path,  # Watched
    into: Path,  # Gets a numbered copy of each state
):
    "For `before`: photographs `folder` before each change to it, each state once. What is the same is linked."
    copies, seen = {}, set()
    def copy(source, target):
        stat = os.stat(source)
        key = stat.st_ino, stat.st_mtime_ns, stat.st_size
        if key in copies:
            os.link(copies[key], target)
        else:
            copies[key] = shutil.copy2(source, target)
    def at(count, name, path):
        now = frozenset((str(f.relative_to(folder)), f.stat().st_ino, f.stat().st_mtime_ns, f.stat().st_size)
                        if f.is_file() else str(f.relative_to(folder)) for f in folder.rglob("*"))
        if now not in seen:
            seen.add(now)
            label = f"{name.split('.')[-1]} {os.path.relpath(path, folder)}".replace("/", "|")
            shutil.copytree(folder, into / f"{count:03} {label}", copy_function=copy)
    return lambda: watch(folder, at)


def tree(
    folder: Path,  # A workspace
) -> dict:  # Relative path to digest, or to `left behind`
    "The content of a workspace, as far as two equal runs agree on it."
    found = {}
    for file in sorted(Path(folder).rglob("*")):
        name = str(file.relative_to(folder))
        if LEFTOVER.search(name):
            found[name] = "left behind"
        elif file.is_file() and not file.name.startswith("."):
            found[name] = sha256(_lasting(file)).hexdigest()
    return found


def _lasting(file):
    "A file's bytes without what differs between two equal runs."
    content = file.read_bytes()
    with suppress(ValueError):
        if file.name == "log.csv":
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            return repr([{k: v for k, v in row.items() if k not in VOLATILE} for row in rows]).encode()
        if file.suffix == ".json":
            def kept(pairs):
                return {k: v for k, v in pairs if k not in VOLATILE}
            return json.dumps(json.loads(content, object_pairs_hook=kept)).encode()
    return content


def differences(
    wanted: dict,  # From tree
    folder: Path,  # To compare
) -> list:  # Names
    "The files in which a workspace differs from what it should hold."
    found = tree(folder)
    names = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return [f"{name} ({found.get(name, 'missing')[:11]})" for name in names]


def manners(
    ran: Run,
    codes: tuple = (0, 2, 130),  # Exit codes that will do
    names: tuple = (),  # If it failed, its sentence holds one of these
) -> list:  # Of complaints
    "Whether a command ended as promised: its exit code, no traceback, one sentence if it failed, else no warning."
    lines = ran.err.splitlines()
    last = lines[-1] if lines else "nothing on stderr"
    if "Traceback" in ran.err:
        return [f"traceback, exit {ran.code}: {last[:200]}"]
    if ran.code not in codes:
        return [f"exit {ran.code}, not {' or '.join(map(str, codes))}: {last[:200]}"]
    if ran.code == 0:
        return [f"exit 0 with words on stderr: {lines[0][:200]}"] if lines else []
    if lines and lines[0].startswith("usage:"):
        lines = lines[-1:]
    lines = [line for line in lines if not line.startswith("  ")]  # without the examples below a sentence
    if len(lines) != 1:
        return [f"{len(lines)} lines on stderr for one sentence: {' / '.join(lines)[:300]}"]
    if not any(name in ran.err for name in names or [""]):
        return [f"the sentence names none of {', '.join(names)}: {lines[0][:300]}"]
    return []


def in_parallel(
    cases: list,  # Pairs of a name and a function of an empty folder that returns complaints
    work: Path,  # Takes the folders
) -> dict:  # Name to complaints and seconds of processor time
    "Run cases in processes of their own, one a core at a time."
    twice = [name for name, n in Counter(name for name, _ in cases).items() if n > 1]
    assert not twice, f"several checks have one of these names: {twice}"
    waiting, running, found = list(enumerate(cases))[::-1], {}, {}
    while waiting or running:
        while waiting and len(running) < len(os.sched_getaffinity(0)):
            i, (name, case) = waiting.pop()
            folder, result = work / f"case{i}", work / f"case{i}.json"
            folder.mkdir()
            pid = os.fork()
            if not pid:
                try:
                    said = case(folder)
                except BaseException:
                    said = [f"the check itself failed: {traceback.format_exc()}"]
                result.write_text(json.dumps((said, sum(os.times()[:4]))))
                os._exit(0)
            running[pid] = name, folder, result
        pid, _ = os.wait()
        name, folder, result = running.pop(pid)
        found[name] = json.loads(result.read_text()) if result.exists() else (["the check ended without a word"], 0)
        shutil.rmtree(folder, ignore_errors=True)
    return found
