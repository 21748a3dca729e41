"""A small stand-in for the Hugging Face Hub, for tests that push and download: repositories are folders.

    printed = run_on(tmp_path, code)

The Hub's address is read when huggingface_hub is imported, so the code must run in a process of its own. A repository
has one revision; every file is uploaded inside the commit, so neither LFS nor Xet is asked for.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fresh_processes import run_fresh

REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)"
TOKEN = "hf_local"


@contextlib.contextmanager
def local_hub(folder: str | Path) -> Iterator[dict[str, str]]:
    """Serves folder/hub/{models,datasets,spaces}/org/name; yields the environment variables that lead there."""
    folder = Path(folder)

    class Handler(HubHandler):
        root = folder / "hub"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(folder / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # datasets counts the use of its loaders at another address
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_on(folder: Path, code: str, **environment: str) -> str:
    """What Python code prints in a new process that works in a folder, where the Hub is that of the folder."""
    with local_hub(folder) as hub:
        return run_fresh(code, folder, **{**hub, "ACCELERATE_USE_CPU": "true", **environment})


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def log_message(self, *args):
        pass

    # Answers

    def answer(self, body: bytes | dict | list, status: int = 200, **headers: str):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes) else "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, what: str):
        self.answer({"error": f"{what} not found"}, 404, X_Error_Code=what, X_Error_Message=f"{what} not found")

    # The repositories

    def folder_of(self, match: re.Match) -> Path:
        return self.root / (match["kind"] or "models") / match["repo"]

    def files(self, repo: Path) -> list[Path]:
        return sorted(path for path in repo.rglob("*") if path.is_file())

    def revision(self, repo: Path) -> str:
        digest = hashlib.sha1(str(repo).encode(), usedforsecurity=False)
        for path in self.files(repo):
            digest.update(str(path.relative_to(repo)).encode() + path.read_bytes())
        return digest.hexdigest()

    # Requests

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/api/whoami-v2":
            self.answer({"type": "user", "name": "org", "orgs": [], "auth": {"accessToken": {"role": "write"}}})
        elif match := re.fullmatch(f"/api/{REPO}(/revision/[^/]+)?", path):
            self.get_info(self.folder_of(match), match["repo"])
        elif match := re.fullmatch(f"/api/{REPO}/tree/[^/]+(/.*)?", path):
            repo = self.folder_of(match)
            entries = [(p.relative_to(repo).as_posix(), p.read_bytes()) for p in self.files(repo)]
            self.answer([{"type": "file", "path": p, "size": len(c), "oid": blob_id(c)} for p, c in entries])
        elif match := re.fullmatch(FILE, path):
            self.get_file(self.folder_of(match), match["file"], match["revision"])
        else:
            self.missing("EntryNotFound")

    do_HEAD = do_GET

    def get_info(self, repo: Path, repo_id: str):
        if not repo.is_dir():
            return self.missing("RepoNotFound")
        siblings = [{"rfilename": path.relative_to(repo).as_posix()} for path in self.files(repo)]
        info = {"id": repo_id, "modelId": repo_id, "sha": self.revision(repo), "siblings": siblings, "tags": []}
        return self.answer({**info, "private": False})

    def get_file(self, repo: Path, file: str, revision: str):
        if not repo.is_dir():
            return self.missing("RepoNotFound")
        sha = self.revision(repo)
        if revision not in ("main", sha):
            return self.missing("RevisionNotFound")
        if not (repo / file).is_file():
            return self.missing("EntryNotFound")
        content = (repo / file).read_bytes()
        return self.answer(content, ETag=f'"{blob_id(content)}"', X_Repo_Commit=sha)

    def do_POST(self):
        path = self.path.split("?")[0]
        body = self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            request = json.loads(body)
            repo_id = f"{request.get('organization') or 'org'}/{request['name']}"
            repo = self.root / f"{request.get('type') or 'model'}s" / repo_id
            exists = repo.is_dir()
            repo.mkdir(parents=True, exist_ok=True)
            if not exists:
                private = request.get("private") or request.get("visibility") == "private"
                with (self.root / "created.jsonl").open("a") as log:
                    log.write(json.dumps({**request, "id": repo_id, "private": private}) + "\n")
            url = f"{self.headers['Host']}/{repo_id}"
            self.answer({"url": f"http://{url}", "id": repo_id}, 409 if exists else 200)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif re.fullmatch(f"/api/{REPO}/preupload/[^/]+", path):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif match := re.fullmatch(f"/api/{REPO}/commit/[^/]+", path):
            self.commit(self.folder_of(match), [json.loads(line) for line in body.splitlines()], match["repo"])
        else:
            self.missing("EntryNotFound")

    def commit(self, repo: Path, operations: list[dict], repo_id: str):
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                path = repo / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(value["content"]))
            elif operation["key"] == "deletedFile":
                (repo / value["path"]).unlink()
        sha = self.revision(repo)
        url = f"http://{self.headers['Host']}/{repo_id}/commit/{sha}"
        self.answer({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


def blob_id(content: bytes) -> str:
    """The id git gives a file of this content."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
