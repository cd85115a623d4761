"""A loopback Hub in the standard library, and yaml for the cards' metadata: enough of the Hub's HTTP API for the real
huggingface_hub client to create repositories, upload, download and load from.

    with TestHub() as hub:  # a free port on 127.0.0.1
        subprocess.run([...], env={**os.environ, **hub.environment(tmp_path)})

The client reads its settings at import, so it must run in a process of its own with ``hub.environment``. The server
can be told to fail: ``hub.fail_next(3)`` answers 500 to the next three pushes, ``hub.hang_next(1, "/commit/")`` never
answers the next commit.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pkl", ".parquet", ".png", ".tar", ".npz", ".npy")
LFS_THRESHOLD = 10 * 1024 * 1024
REPO_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
NOW = "2026-01-01T00:00:00.000Z"


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repo:
    """One repository: commits (sha -> files, parent, title, message) and refs (full name -> sha)."""

    def __init__(self, repo_type: str, repo_id: str, private: bool) -> None:
        self.type, self.id, self.private = repo_type, repo_id, private
        self.commits: dict[str, dict[str, Any]] = {}
        self.refs: dict[str, str] = {}
        self.refs["refs/heads/main"] = self._store({}, None, "initial commit", "")

    def _store(self, files: dict[str, dict[str, Any]], parent: str | None, title: str, message: str) -> str:
        text = f"{self.type}{self.id}{parent}{title}{len(self.commits)}{sorted(files)}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = {"files": files, "parent": parent, "title": title, "message": message}
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file at a revision."""
        sha = self.resolve(revision)
        assert sha is not None, revision
        return {path: file["data"] for path, file in self.commits[sha]["files"].items()}

    def titles(self, revision: str = "main") -> list[str]:
        """The titles of a revision's commits, newest first."""
        found, sha = [], self.resolve(revision)
        while sha:
            found.append(self.commits[sha]["title"])
            sha = self.commits[sha]["parent"]
        return found

    def resolve(self, revision: str | None) -> str | None:
        revision = revision or "main"
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in self.refs:
                return self.refs[name]
        return revision if revision in self.commits else None

    def commit(
        self, revision: str, header: dict[str, Any], operations: list[dict[str, Any]], lfs: dict[str, bytes]
    ) -> str | None:
        """Applies the operations of one commit request; None where its parent is no longer the branch's head."""
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        parent = self.refs[ref]
        if header.get("parentCommit") and header["parentCommit"] != parent:
            return None
        files = dict(self.commits[parent]["files"])
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = {"data": base64.b64decode(value["content"])}
            elif operation["key"] == "lfsFile":
                files[value["path"]] = {"data": lfs[value["oid"]], "lfs": value["oid"]}
            elif operation["key"] == "deletedFile":
                files.pop(value["path"], None)
        if files == self.commits[parent]["files"]:
            return parent
        self.refs[ref] = self._store(files, parent, header.get("summary", ""), header.get("description", ""))
        return self.refs[ref]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "TestHub/0"
    server: "HubHTTPServer"

    def log_message(self, *args: Any) -> None:
        """Silent: hub.requests lists what came in."""

    # plumbing
    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while True:
            size = int(self.rfile.readline().split(b";")[0], 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                return body

    def _send(
        self, status: int, payload: Any = b"", headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, {"error": message}, headers)

    def _user(self) -> str | None:
        return self.server.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _dispatch(self) -> None:
        hub = self.server.hub
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = unquote(url.path)
        body = self._body() if self.command in ("POST", "PUT", "DELETE") else b""
        fault = hub.take_fault(self.command, self.path)
        if fault == "hang":
            hub.closing.wait()  # until the server closes: the client must give up by itself
            self.close_connection = True
            return
        if fault == "fail":
            self._error(500, "InternalError", "told to fail")
            return
        for method, pattern, answer, needs_token in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and (method == self.command or (method == "GET" and self.command == "HEAD")):
                if needs_token and not self._user():
                    return self._error(401, "Unauthorized", "Invalid username or password.")
                with hub.lock:
                    return answer(self, hub, body, **match.groupdict())
        self._error(404, "NotFound", f"no route {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _dispatch

    def _repo(self, hub: "TestHub", kind: str | None, repo_id: str) -> Repo | None:
        repo = hub.repos.get((REPO_TYPES[kind or "models"], repo_id))
        if repo is None or (repo.private and not self._user()):
            self._error(404 if self._user() else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _commit_of(self, hub: "TestHub", kind: str | None, repo_id: str, rev: str | None) -> tuple[Repo, str] | None:
        repo = self._repo(hub, kind, repo_id)
        if repo is None:
            return None
        sha = repo.resolve(rev)
        if sha is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            return None
        return repo, sha

    # the API
    def whoami(self, hub: "TestHub", body: bytes) -> None:
        name = self._user()
        if not name:
            return self._error(401, "Unauthorized", "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        self._send(200, {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": token}})

    def create(self, hub: "TestHub", body: bytes) -> None:
        request = json.loads(body)
        repo_id = f"{request.get('organization') or self._user()}/{request['name']}"
        kind = request.get("type") or "model"
        answer = {
            "url": f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}",
            "name": repo_id,
            "id": repo_id,
        }
        if (kind, repo_id) in hub.repos:
            return self._send(409, {**answer, "error": "You already created this model repo"})
        private = request.get("visibility") == "private" or bool(request.get("private"))
        hub.repos[kind, repo_id] = Repo(kind, repo_id, private)
        self._send(200, answer)

    def info(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str | None = None) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            repo, sha = found
            files = repo.commits[sha]["files"]
            metadata = card_metadata(files.get("README.md", {}).get("data", b""))
            answer = {"_id": "0", "id": repo_id, "modelId": repo_id, "author": repo_id.split("/")[0], "sha": sha}
            answer |= {"lastModified": NOW, "createdAt": NOW, "private": repo.private, "gated": False, "downloads": 0}
            answer |= {"likes": 0, "disabled": False, "tags": metadata.get("tags", []), "cardData": metadata}
            answer |= {key: metadata.get(key) for key in ("library_name", "pipeline_tag")}
            self._send(200, {**answer, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str, path: str | None = None) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            files = found[0].commits[found[1]]["files"]
            prefix = path.strip("/") + "/" if path else ""
            recursive = self.query.get("recursive", "").lower() in ("1", "true")
            entries: dict[str, dict[str, Any]] = {}
            for name in (name for name in sorted(files) if name.startswith(prefix)):
                parts = name.removeprefix(prefix).split("/")
                for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                    folder = prefix + "/".join(parts[:depth])
                    entries.setdefault(folder, folder_entry(folder))
                if recursive or len(parts) == 1:
                    entries[name] = file_entry(name, files[name])
            if prefix and not entries:
                return self._error(404, "EntryNotFound", f"{path} does not exist on {rev}")
            self._send(200, list(entries.values()))

    def paths_info(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            files = found[0].commits[found[1]]["files"]
            paths = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            entries = [file_entry(path, files[path]) for path in paths if path in files]
            folders = [path.rstrip("/") for path in paths if any(name.startswith(f"{path}/") for name in files)]
            self._send(200, entries + [folder_entry(path) for path in folders])

    def preupload(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            files, answers = found[0].commits[found[1]]["files"], []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_THRESHOLD else "regular"
                current = files.get(file["path"])
                oid = None if current is None else current.get("lfs") or git_blob_oid(current["data"])
                answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self._send(200, {"files": answers})

    def lfs_batch(self, hub: "TestHub", body: bytes, kind: str | None, repo_id: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in hub.lfs:
                answer["actions"] = {"upload": {"href": f"{hub.url}/_lfs/{item['oid']}", "header": {}}}
            objects.append(answer)
        self._send(200, {"transfer": "basic", "objects": objects}, kind="application/vnd.git-lfs+json")

    def lfs_put(self, hub: "TestHub", body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "BadRequest", "sha256 mismatch")
        hub.lfs[oid] = body
        self._send(200)

    def commit(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            sha = found[0].commit(rev, lines[0]["value"], lines[1:], hub.lfs)
            if sha is None:
                return self._error(412, "PreconditionFailed", "A commit has happened since. Please refresh.")
            prefix = "" if kind == "models" else f"{kind}/"
            url = f"{hub.url}/{prefix}{repo_id}/commit/{sha}"
            self._send(200, {"success": True, "commitOid": sha, "commitUrl": url})

    def refs(self, hub: "TestHub", body: bytes, kind: str, repo_id: str) -> None:
        if repo := self._repo(hub, kind, repo_id):

            def under(prefix: str) -> list[dict[str, str]]:
                refs = [(ref, sha) for ref, sha in repo.refs.items() if ref.startswith(prefix)]
                return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha} for ref, sha in refs]

            branches, tags = under("refs/heads/"), under("refs/tags/")
            self._send(200, {"branches": branches, "tags": tags, "converts": [], "pullRequests": []})

    def branch(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str) -> None:
        if repo := self._repo(hub, kind, repo_id):
            ref = f"refs/heads/{rev}"
            if ref in repo.refs:
                return self._error(409, "Conflict", "Reference already exists")
            sha = repo.resolve(json.loads(body or b"{}").get("startingPoint"))
            assert sha is not None
            repo.refs[ref] = sha
            self._send(200, {})

    def tag(self, hub: "TestHub", body: bytes, kind: str, repo_id: str, rev: str) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            repo, sha = found
            ref = f"refs/tags/{json.loads(body)['tag']}"
            if ref in repo.refs:
                return self._error(409, "Conflict", "Reference already exists")
            repo.refs[ref] = sha
            self._send(200, {})

    def resolve_file(self, hub: "TestHub", body: bytes, kind: str | None, repo_id: str, rev: str, path: str) -> None:
        if found := self._commit_of(hub, kind, repo_id, rev):
            repo, sha = found
            file = repo.commits[sha]["files"].get(path)
            if file is None:
                return self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
            data, etag = file["data"], file.get("lfs") or git_blob_oid(file["data"])
            headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
            if "lfs" in file:
                headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
            asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if asked and self.command == "GET":
                first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
                headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
                return self._send(206, data[first : last + 1], headers, "application/octet-stream")
            self._send(200, data, headers, "application/octet-stream")

    def validate_yaml(self, hub: "TestHub", body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})


def card_metadata(card: bytes) -> dict[str, Any]:
    match = re.match(r"\s*---\s*\n(.*?)\n---", card.decode("utf-8", "ignore"), re.DOTALL)
    return json.loads(json.dumps(yaml.safe_load(match[1]) or {}, default=str)) if match else {}


def file_entry(path: str, file: dict[str, Any]) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(file["data"]), "oid": git_blob_oid(file["data"])}
    if "lfs" in file:
        entry["lfs"] = {"oid": file["lfs"], "size": len(file["data"]), "pointerSize": 134}
    return entry


def folder_entry(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


REPO_ID, REV, KIND = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<rev>refs/[^/]+/[^/]+|[^/]+)", r"(?P<kind>models|datasets)"
FILE_ROOT = r"/(?:(?P<kind>datasets)/)?" + REPO_ID
ROUTES: list[tuple[str, str, Any, bool]] = [  # method, path, answer, whether a token is needed
    ("GET", r"/api/whoami-v2", Handler.whoami, False),
    ("POST", r"/api/repos/create", Handler.create, True),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml, False),
    ("POST", rf"/api/{KIND}/{REPO_ID}/preupload/{REV}", Handler.preupload, True),
    ("POST", rf"/api/{KIND}/{REPO_ID}/commit/{REV}", Handler.commit, True),
    ("GET", rf"/api/{KIND}/{REPO_ID}/tree/{REV}(?:/(?P<path>.+))?", Handler.tree, False),
    ("POST", rf"/api/{KIND}/{REPO_ID}/paths-info/{REV}", Handler.paths_info, False),
    ("GET", rf"/api/{KIND}/{REPO_ID}/refs", Handler.refs, False),
    ("POST", rf"/api/{KIND}/{REPO_ID}/branch/{REV}", Handler.branch, True),
    ("POST", rf"/api/{KIND}/{REPO_ID}/tag/{REV}", Handler.tag, True),
    ("GET", rf"/api/{KIND}/{REPO_ID}/revision/{REV}", Handler.info, False),
    ("GET", rf"/api/{KIND}/{REPO_ID}", Handler.info, False),
    ("POST", rf"{FILE_ROOT}\.git/info/lfs/objects/batch", Handler.lfs_batch, True),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put, False),
    ("GET", rf"{FILE_ROOT}/(?:resolve|raw)/{REV}/(?P<path>.+)", Handler.resolve_file, False),
]


class HubHTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    hub: "TestHub"


class TestHub:
    """The server, its repositories (by ("model" | "dataset", id)) and its log of requests."""

    __test__ = False  # not a class of tests

    def __init__(self, port: int = 0) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens = {"hf_test": "tester"}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self._faults: list[tuple[str, str]] = []
        self._http = HubHTTPServer(("127.0.0.1", port), Handler)
        self._http.hub = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def fail_next(self, requests: int, path: str = "/api/repos/create") -> None:
        """Answers 500 to the next so many requests whose path contains ``path``."""
        self._faults += [("fail", path)] * requests

    def hang_next(self, requests: int, path: str = "/api/repos/create") -> None:
        """Never answers the next so many requests whose path contains ``path``."""
        self._faults += [("hang", path)] * requests

    def take_fault(self, method: str, path: str) -> str | None:
        with self.lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault[1] in path:
                    self._faults.remove(fault)
                    return fault[0]
            return None

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs in its environment to use this Hub alone, with its caches under ``home``."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_test",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",  # the large-file protocol that this server does not speak
            "NO_PROXY": "127.0.0.1",
        }

    def __enter__(self) -> "TestHub":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
