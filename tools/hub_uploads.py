"""The hub of tools/try_hub.py learns to take uploads, and `amazon_ft_push` is put through them.

A token is a name with a right: `me:write` may write to what belongs to `me`. Large files travel by Git LFS: which of
them are missing, one PUT each, a check of their size and digest, then a commit. The real hub prefers Xet;
huggingface_hub is told by HF_HUB_DISABLE_XET to do without.
"""
import base64
import json
import re
import shutil
from hashlib import sha256

LFS = (".safetensors", ".png")  # endings of the files that go by LFS
POSTS = re.compile(
    r"/api/repos/create|/api/validate-yaml|/api/models/(?P<model>[^/]+/[^/]+)/(?P<kind>preupload|commit)/main"
    r"|/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch|/lfs/(?P<oid>[0-9a-f]{64})/verify"
)


class Uploads:
    "What the hub answers to POST and PUT; the rest of it is try_hub's `Answer`."

    def token(self) -> tuple:  # Owner and right; empty without a token
        "Who asks."
        owner, _, right = self.headers.get("Authorization", "").removeprefix("Bearer ").partition(":")
        return owner, right

    def reply(self, content: dict):
        "A JSON answer."
        self.send(200, json.dumps(content).encode(), Content_Type="application/json")

    def body(self) -> bytes:
        "What was sent."
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_PUT(self):
        "A large file."
        content = self.body()
        self.server.blobs[self.path.removeprefix("/lfs/")] = content
        self.reply({})

    def do_POST(self):
        "Find the question, check the token, answer."
        content, route = self.body(), POSTS.fullmatch(self.path.partition("?")[0])
        if not route:
            return self.deny(404, "", f"no such page: {self.path}")
        if self.path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if not self.token()[0]:
            return self.deny(401, "", "Invalid username or password.")
        if self.token()[1] != "write":
            return self.deny(403, "", "You don't have the rights to create a model under this namespace")
        if route["oid"]:
            return self.verify(route["oid"], json.loads(content))
        if route["repo"]:
            return self.batch(json.loads(content)["objects"])
        if not route["model"]:
            return self.create(json.loads(content))
        if route["kind"] == "preupload":
            files = [dict(path=file["path"], shouldIgnore=False, uploadMode=mode(file["path"]))
                     for file in json.loads(content)["files"]]
            return self.reply({"files": files})
        return self.commit(route["model"], [json.loads(line) for line in content.splitlines()])

    def create(self, wanted: dict):
        "A repository, empty but for what git wants."
        owner = self.token()[0]
        repo = f"{wanted.get('organization') or owner}/{wanted['name']}"
        if not repo.startswith(f"{owner}/"):
            return self.deny(403, "", "You don't have the rights to create a model under this namespace")
        url = f"http://{self.headers['Host']}/{repo}"
        if repo in self.server.repos:
            return self.send(409, json.dumps({"error": "You already created this model repo", "url": url}).encode())
        self.server.push(repo, {".gitattributes": b""})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.server.private.add(repo)
        self.reply({"url": url, "name": repo, "id": repo})

    def batch(self, objects: list):
        "Where to put the large files that are not here yet."
        here = f"http://{self.headers['Host']}/lfs/"
        actions = lambda oid: dict(upload=dict(href=here + oid), verify=dict(href=f"{here}{oid}/verify"))
        missing = lambda oid: {} if oid in self.server.blobs else {"actions": actions(oid)}
        self.reply({"transfer": "basic", "objects": [o | missing(o["oid"]) for o in objects]})

    def verify(self, oid: str, told: dict):
        "Whether a large file arrived whole."
        content = self.server.blobs.get(oid, b"")
        if (len(content), sha256(content).hexdigest()) != (told["size"], oid):
            return self.deny(422, "", "the file is not what was announced")
        self.reply({})

    def commit(self, repo: str, lines: list):
        "A new commit: the old files, some of them gone, and the new ones."
        if self.server.faults.get(repo) == "commit" and any(line["key"] == "lfsFile" for line in lines):
            return self.deny(503, "", "Service Unavailable")
        files = dict(list(self.server.repos[repo].values())[-1])
        for line in lines:
            value, kind = line["value"], line["key"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = self.server.push(repo, files)
        url = f"http://{self.headers['Host']}/{repo}/commit/{commit}"
        self.reply({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def mode(
    name: str,  # A file's name
) -> str:
    "How a file travels."
    return "lfs" if name.endswith(LFS) else "regular"


def newest(hub, repo: str) -> dict:
    "The files of a repository's newest commit."
    return list(hub.repos[repo].values())[-1]


def published(
    hub,  # From try_hub
    desk,  # A desk where the recipe was run on a base from the hub
):
    "Push everything, in all ways, and load it again."
    me = dict(HF_TOKEN="me:write", HF_HUB_DISABLE_XET="1")
    outputs = desk.folder / "runs/outputs"
    merged, adapter = outputs / "tinyllama11b_descfmt_merged_fp16", outputs / "tinyllama11b_descfmt_lora/adapter"
    desk.refused("push --repo_id shop", "hf auth login")
    desk.refused("push --repo_id shop", "right to write", **me | dict(HF_TOKEN="me:read"))
    desk.refused("push --repo_id you/shop", "right to write", **me)
    desk.refused("push --repo_id shop", "run the same command again", **me | dict(HF_ENDPOINT="http://127.0.0.1:9"))
    assert not hub.blobs and "me/shop" not in hub.repos, "something was sent"

    hub.push("me/shop", {".gitattributes": b"", "model-00001-of-00002.safetensors": b"old", "notes.md": b"Mine."})
    desk.refused("push --repo_id shop", "public already", **me)
    hub.private.add("me/shop")
    hub.faults["me/shop"] = "commit"
    desk.refused("push --repo_id shop --what both", "503", **me)
    del hub.faults["me/shop"]
    assert hub.blobs, "the large files should have arrived before the commit failed"
    said = desk.run("push --repo_id shop --what both", **me)
    assert sum(line.startswith("PUT ") for line in hub.log) == len(hub.blobs), "a file that had arrived was sent again"
    assert said.rstrip().endswith("/me/shop, private"), said
    check_files(newest(hub, "me/shop"), {"": merged, "adapter/": adapter}, ["notes.md"])
    load_again(hub, desk, me)

    said = desk.run("push --repo_id lora --what adapter --public", **me)
    assert said.rstrip().endswith("/me/lora, public") and "me/lora" not in hub.private, said
    assert newest(hub, "me/lora")["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert b"library_name: peft" in newest(hub, "me/lora")["README.md"]


def check_files(
    files: dict,  # Of a commit
    folders: dict,  # Place in the repository to the folder that was sent there
    kept: list,  # Names that were there before and stay
):
    "A repository holds what was sent, what it had of its own, a card with an origin, and nothing else."
    expected = {f"{place}{path.name}": path.read_bytes() for place, folder in folders.items()
                for path in folder.iterdir() if not path.name.startswith(".") and path.name != "README.md"}
    assert {name: data for name, data in files.items() if name in expected} == expected
    assert set(files) - set(expected) == {".gitattributes", "README.md", *kept}, set(files) ^ set(expected)
    card = files["README.md"].decode()
    for words in ("base_model: TinyLlama/", "model-index:", "type: rougeL", "## Where it comes from", "Decoding:"):
        assert words in card, words


def load_again(
    hub,
    desk,
    me: dict,  # Environment of somebody who may read it
):
    "The pushed model, fetched into an empty cache, describes as the folder does."
    job = f"generate --source {desk.folder}/catalogue.csv --max_new_tokens 24 --model me/shop"
    cache = dict(HF_HOME=str(desk.folder / "fresh"))
    desk.run(f"{job} --out {desk.folder}/from_hub.csv", **me | cache)
    assert (desk.folder / "from_hub.csv").read_bytes() == (desk.folder / "described.csv").read_bytes()
    shutil.rmtree(desk.folder / "fresh")
    desk.refused(f"{job} --out {desk.folder}/no.csv", "private", HF_TOKEN="", **cache)
