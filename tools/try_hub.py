"""Run the recipe by hub id, against a Hugging Face hub of our own on this machine, and meet what a hub can do wrong.

Usage: python tools/try_hub.py [--bin FOLDER]      FOLDER holds the console scripts, by default this Python's
The hub lives in this process and holds a small random Llama of 32,000 tokens under TinyLlama's name. Every stage runs
as its console script: first online, then pushed (tools/hub_uploads.py), then after the hub got a new commit, then
offline from the cache. Each fault of a hub (absent, gated, down, cut short, weights in a pickle, unknown architecture,
code of its own) must end in one sentence that names the next step, exit code 2, and nothing written.
"""
import argparse
import json
import os
import pickle
import pty
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from hub_uploads import Uploads, published

TINYLLAMA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
TITLES = ("Bamboo Cutting Board", "Steel Kettle, 1.7 l", "Wool Socks, grey")
VOCABULARY = 32_000
TEMPLATE = (  # TinyLlama's dialogue: a role in angle brackets, the text, the end of the turn
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
ROUTE = re.compile(
    r"/(?:api/models/(?P<model>[^/]+/[^/]+)(?:/(?P<kind>revision|tree)/(?P<at>[^/]+))?"
    r"|(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+))"
)


class Hub(ThreadingHTTPServer):
    "Repositories in memory: commits, oldest first, each a dict of file name to content; and what fails."

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos, self.faults, self.log = {}, {}, []
        self.private, self.blobs = set(), {}  # names of private repositories; large files by digest
        Thread(target=self.serve_forever, daemon=True).start()

    def push(
        self,
        repo: str,  # `owner/name`
        files: dict,  # File name to bytes, all files of the commit
    ) -> str:  # The commit's 40 digits
        "A new commit, which `main` points to from now on."
        commits = self.repos.setdefault(repo, {})
        commit = sha1(f"{repo} {len(commits)}".encode()).hexdigest()
        commits[commit] = files
        return commit


class Answer(Uploads, BaseHTTPRequestHandler):
    "The three questions of huggingface_hub to GET: which commit, which files, and a file itself."

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status: int, body: bytes = b"", **headers):
        "A whole answer; headers are written with underscores."
        self.server.log.append(f"{self.command} {self.path} {self.headers.get('Range', '')} {status}")
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def deny(self, status: int, code: str, message: str):
        "An error as the hub words it: a code and a message in the headers."
        self.send(status, json.dumps({"error": message}).encode(), X_Error_Code=code, X_Error_Message=message)

    def do_GET(self):
        "Find the repository and the commit, then answer."
        route = ROUTE.fullmatch(self.path.partition("?")[0])
        if not route:
            return self.deny(404, "", f"no such page: {self.path}")
        repo = route["model"] or route["repo"]
        commits, fault = self.server.repos.get(repo), self.server.faults.get(repo)
        if fault == "down":
            return self.deny(500, "", "Internal Error - We're working hard to fix this as soon as possible!")
        if commits is None or repo in self.server.private and not repo.startswith(f"{self.token()[0]}/"):
            return self.deny(401, "RepoNotFound", "Repository not found")
        revision = route["at"] or route["revision"] or "main"
        commit = list(commits)[-1] if revision == "main" else revision
        if commit not in commits:
            return self.deny(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if fault in (401, 403) and route["file"]:
            return self.deny(fault, "GatedRepo", f"Access to model {repo} is restricted.")
        if not route["file"]:
            return self.listing(repo, commit, commits[commit], route["kind"] == "tree")
        if route["file"] not in commits[commit]:
            return self.deny(404, "EntryNotFound", "Entry not found")
        return self.content(commit, commits[commit][route["file"]], fault == "cut" and "safetensors" in route["file"])

    do_HEAD = do_GET

    def listing(self, repo: str, commit: str, files: dict, tree: bool):
        "What a commit holds."
        sizes = [dict(type="file", path=name, size=len(data), oid=etag(data)) for name, data in files.items()]
        siblings = [{"rfilename": name} for name in files]
        info = dict(id=repo, modelId=repo, sha=commit, private=repo in self.server.private, tags=[], downloads=0,
                    siblings=siblings)
        self.send(200, json.dumps(sizes if tree else info).encode(), Content_Type="application/json")

    def content(self, commit: str, data: bytes, cut: bool):
        "A file, or the range of it that was asked for; or no more than 100 bytes, however often one asks."
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(start[1]) if start else 0
        headers = dict(X_Repo_Commit=commit, ETag=f'"{etag(data)}"', Accept_Ranges="bytes")
        if start:
            headers["Content_Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if cut and self.command == "GET":
            self.send(206 if start else 200, data[first : first + 100], Content_Length=len(data) - first, **headers)
            self.close_connection = True
        else:
            self.send(206 if start else 200, data[first:], **headers)


def etag(
    data: bytes,  # A file's content
) -> str:
    "What tells a file's content from any other."
    return sha256(data).hexdigest()[:40]


class Harm:
    "Writes a file when it is unpickled."

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def tokenizer_files() -> dict:  # File name to content
    "A tokenizer of the shape of TinyLlama's: byte-fallback BPE, trained on the shipped sample and padded to size."
    import gzip

    from amazon_ft.core import asset
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    lines = gzip.decompress(asset("sample/trn.json.gz").read_bytes()).decode().splitlines()
    texts = [text for row in map(json.loads, lines[:3000]) for text in (row["title"], row["content"])]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=4000, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    words += [f"<padding {i}>" for i in range(VOCABULARY - len(words))]
    merges = [tuple(pair) for pair in learned["merges"]]
    model = models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", fuse_unk=True,
                       byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = dict(tokenizer_class="LlamaTokenizer", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                  pad_token="</s>", add_bos_token=True, add_eos_token=False, legacy=False, model_max_length=2048,
                  clean_up_tokenization_spaces=False, chat_template=TEMPLATE)
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


def model_files(
    seed: int,  # Of the random weights
) -> dict:  # File name to content
    "A random Llama of TinyLlama's vocabulary, with the generation settings that TinyLlama ships."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048, dtype="bfloat16")
    with TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        files = {file.name: file.read_bytes() for file in Path(folder).iterdir()}
    settings = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0, max_length=2048)
    return files | {"generation_config.json": json.dumps(settings).encode(), "README.md": b"A random Llama.\n"}


def changed(
    files: dict,  # File name to content
    name: str,  # A JSON file among them
    **entries,  # What to write into it
) -> dict:  # All files, that one changed
    "A commit with other entries in one of its JSON files."
    return files | {name: json.dumps(json.loads(files[name]) | entries).encode()}


class Desk:
    "Where somebody types the commands: one workspace, one cache, one hub."

    def __init__(
        self,
        folder: Path,  # Everything that is written
        endpoint: str,  # The hub's address
        scripts: Path,  # Folder of the console scripts
    ):
        self.folder, self.scripts = folder, scripts
        foreign = ("HF_", "HUGGING", "AMAZON_FT", "TRANSFORMERS_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | dict(
            HF_ENDPOINT=endpoint, HF_HOME=str(folder / "hf"), HOME=str(folder), OMP_NUM_THREADS="1",
            HF_HUB_DISABLE_TELEMETRY="1", AMAZON_FT_ROOT=str(folder / "runs"))
        folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        command: str,  # As typed, without `amazon_ft_`
        *more: str,  # Arguments with spaces in them
        code: int = 0,  # The expected exit code
        answer: bytes = b"",  # What somebody types at the terminal
        **env,  # Further environment variables
    ) -> str:  # What it printed, on both streams
        "Run a command; its exit code and a clean output are checked."
        name, *arguments = command.split()
        master, terminal = pty.openpty()
        os.write(master, answer)
        start = time.perf_counter()
        argv = [self.scripts / f"amazon_ft_{name}", *arguments, *more]
        done = subprocess.run(argv, env=self.env | env, cwd=self.folder, stdin=terminal, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900)
        os.close(master)
        os.close(terminal)
        print(f"   {time.perf_counter() - start:4.1f} s  amazon_ft_{command} {' '.join(more)}", flush=True)
        wrong = re.search(r"Traceback|\w*Warning: ", done.stdout)
        assert done.returncode == code and not wrong, f"{command}: exit code {done.returncode}\n{done.stdout[-3000:]}"
        return done.stdout

    def refused(
        self,
        command: str,  # As typed, without `amazon_ft_`
        *expected: str,  # Regular expressions that the sentence must match
        **kwargs,  # For run
    ):
        "Run a command that must end in one sentence on one line and leave the outputs as they were."
        before = self.outputs()
        sentence = self.run(command, code=2, **kwargs).strip().splitlines()[-1]
        print(f"           {sentence}")
        assert sentence.startswith(f"amazon_ft_{command.split()[0]}: "), sentence
        missing = [pattern for pattern in expected if not re.search(pattern, sentence)]
        assert not missing, f"{command}: {sentence}\nlacks {missing}"
        assert self.outputs() == before, f"{command} wrote {self.outputs() ^ before}"

    def outputs(self) -> set:
        "What lies under the workspace's outputs, with the time of writing."
        return {(str(path), path.stat().st_mtime_ns) for path in (self.folder / "runs/outputs").rglob("*")
                if path.is_file() and not path.name.startswith(".")}


def recipe(
    hub: Hub,
    desk: Desk,
) -> str:  # The commit that was trained on
    "README's commands by hub id, four steps instead of 600."
    (commit,) = hub.repos[TINYLLAMA]
    desk.run("prepare --source sample --n_train 200 --n_valid 20 --n_test 40")
    desk.run("train --max_steps 4 --save_steps 2")
    run = desk.folder / "runs/outputs/tinyllama11b_descfmt_lora"
    adapter = json.loads((run / "adapter/adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == TINYLLAMA, adapter
    assert adapter["revision"] == commit, adapter
    stages(desk)
    assert hub.log and not [line for line in hub.log if line.endswith(" 500")], hub.log
    return commit


def stages(
    desk: Desk,
    **env,  # Further environment variables
):
    "All commands after training, none with the base's name."
    catalogue = desk.folder / "catalogue.csv"
    catalogue.write_text("title\n" + "".join(f'"{title}"\n' for title in TITLES))
    desk.run("merge", **env)
    desk.run("eval --k 3 --max_new_tokens 24", **env)
    desk.run(f"generate --source {catalogue} --out {desk.folder}/described.csv --max_new_tokens 24", **env)
    assert len((desk.folder / "described.csv").read_text().splitlines()) > len(TITLES)
    shown = desk.run("demo --title", TITLES[0], **env)
    assert "base" in shown and "tuned" in shown, shown


def other_commits(
    hub: Hub,
    desk: Desk,
    commit: str,  # The commit that was trained on
):
    "A README is no other base; other weights are one, and only by their own commit."
    files = hub.repos[TINYLLAMA][commit]
    hub.push(TINYLLAMA, files | {"README.md": b"Other words.\n"})
    desk.run("train --max_steps 4 --save_steps 2")
    desk.run("eval --k 3 --max_new_tokens 24")
    newer = hub.push(TINYLLAMA, files | model_files(seed=1))
    desk.run("merge")
    desk.run("demo --title", TITLES[1])
    for stage in ("merge", "eval"):
        desk.refused(f"{stage} --base {TINYLLAMA}@{newer}", commit[:7], newer[:7])
    desk.refused(f"train --max_steps 4 --save_steps 2 --revision {newer}", "--overwrite")


def faults(
    hub: Hub,
    desk: Desk,  # Whose prepared dataset the others take
    commit: str,  # The commit that was trained on
    harm: Path,  # A file that only foreign code would write
):
    "Each fault, at a desk of its own: its sentence."
    good = hub.repos[TINYLLAMA][commit]
    code = f"from pathlib import Path\nPath({str(harm)!r}).touch()\n".encode()
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", None]}
    custom = changed(good, "config.json", model_type="own", architectures=["Own"], auto_map=auto_map)
    custom = changed(custom, "tokenizer_config.json", auto_map=auto_map, tokenizer_class="OwnTokenizer")
    hidden = changed(good, "config.json", auto_map=auto_map)
    pickled = {k: v for k, v in good.items() if "safetensors" not in k}
    pickled["pytorch_model.bin"] = pickle.dumps(Harm(harm))
    hub.push("gated/login", good)
    hub.push("gated/list", good)
    hub.push("down/down", good)
    hub.push("cut/short", good)
    hub.push("old/pickle", pickled)
    hub.push("odd/architecture", changed(good, "config.json", model_type="unheard_of", architectures=["Unheard"]))
    hub.push("odd/code", custom | {"own.py": code})
    hub.push("odd/hidden", hidden | {"own.py": code})
    hub.faults |= {"gated/login": 401, "gated/list": 403, "down/down": "down", "cut/short": "cut"}
    cases = {
        "nobody/nothing": ("nobody/nothing", "name"),
        f"{TINYLLAMA}@nowhere": ("nowhere", "revision"),
        "gated/login": (r"http\S+/gated/login", "hf auth login"),
        "gated/list": (r"http\S+/gated/list", "hf auth login"),
        "down/down": ("500", "again"),
        "cut/short": ("again",),
        "old/pickle": ("safetensors",),
        "odd/architecture": ("unheard_of",),
        "odd/code": ("code",),
    }

    def meet(base):
        own = Desk(desk.folder / base.replace("/", "_"), desk.env["HF_ENDPOINT"], desk.scripts)
        shutil.copytree(desk.folder / "runs/cache", own.folder / "runs/cache")
        own.refused(f"train --max_steps 4 --base {base}", *cases[base], answer=b"y\n" * 9)
        return own

    with ThreadPoolExecutor(2) as both:
        desks = dict(zip(cases, both.map(meet, cases)))
    del hub.faults["cut/short"]
    hub.log.clear()
    desks["cut/short"].run("train --max_steps 1 --save_steps 0 --base cut/short")
    assert not any(re.match(r"GET .*tokenizer\.json", line) for line in hub.log), "whole files were fetched again"
    desks["odd/code"].run("train --max_steps 1 --save_steps 0 --base odd/hidden", answer=b"y\n" * 9)
    assert not harm.exists(), "code from the hub was run"


def gone(
    hub: Hub,
    desk: Desk,
    commit: str,  # The commit that was trained on
):
    "A commit that the hub no longer has: nothing is lost while it is cached, then a sentence."
    del hub.repos[TINYLLAMA][commit]
    desk.run("demo --title", TITLES[2])
    desk.refused("eval --k 4 --max_new_tokens 24", commit[:7], HF_HOME=str(desk.folder / "empty"))


def main() -> int:
    "All of it, in one folder that goes at the end."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="folder of the console scripts")
    args = parser.parse_args()
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        hub = Hub()
        hub.push(TINYLLAMA, model_files(seed=0) | tokenizer_files())
        desk = Desk(folder / "desk", f"http://127.0.0.1:{hub.server_port}", args.bin.absolute())
        commit = recipe(hub, desk)
        published(hub, desk)
        other_commits(hub, desk, commit)
        faults(hub, desk, commit, folder / "harm")
        gone(hub, desk, commit)
        hub.shutdown()
        hub.server_close()
        print("offline:")
        desk.run("train --max_steps 4 --save_steps 2", HF_HUB_OFFLINE="1")
        stages(desk, HF_HUB_OFFLINE="1")
    print(f"the recipe by hub id holds, {time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
