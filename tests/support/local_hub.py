"""
A local stand-in for the Hub, which serves repositories from a folder and stores uploads there: models in
`ORGANISATION/NAME`, datasets in `datasets/ORGANISATION/NAME`.
"""

import base64
import hashlib
import json
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LFS_SUFFIXES = (".parquet",)  # uploaded before the commit, by the protocol of Git LFS; other files are in the commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args, folder: Path, **kwargs):
        self.folder = folder
        super().__init__(*args, **kwargs)

    def do_GET(self):
        path = unquote(self.path.split("?")[0]).strip("/")
        self._send(*(self._describe(path) if path.startswith("api/") else self._read(path)))

    do_HEAD = do_GET

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.split("?")[0]).strip("/")
        self._send(200, self._accept(path, content))

    def do_PUT(self):
        (self.folder / self.path.strip("/")).write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(200, {})

    # --- downloads ---

    def _repository(self, path: str) -> tuple[Path, list[str]]:
        """Return the folder of `api/models/ORGANISATION/NAME/...`, and the rest of the path."""
        kind, organisation, name, *rest = path.removeprefix("api/").split("/")
        return self.folder / ("" if kind == "models" else kind) / organisation / name, rest

    def _describe(self, path: str) -> tuple:
        repository, rest = self._repository(path) if path.count("/") > 2 else (self.folder / "nothing", [])
        if not repository.is_dir():
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        if rest[:1] == ["tree"]:
            inside = [*rest[2:], ""]
            entries = [entry for entry in _entries(repository) if entry["path"].startswith("/".join(inside))]
            if "recursive=true" not in self.path.lower():
                entries = [entry for entry in entries if entry["path"].count("/") < len(inside)]
            return (200, entries) if entries or not rest[2:] else (404, b"", {"X-Error-Code": "EntryNotFound"})
        names = [{"rfilename": entry["path"]} for entry in _entries(repository)]
        identity = f"{repository.parent.name}/{repository.name}"
        return 200, {"id": identity, "sha": _revision(repository), "siblings": names, "private": False}

    def _read(self, path: str) -> tuple:
        prefix = ["datasets"] if path.startswith("datasets/") else []
        organisation, name, _, revision, *file = path.split("/")[len(prefix) :]
        repository = self.folder.joinpath(*prefix, organisation, name)
        content = repository.joinpath(*file)
        if repository.is_dir() and revision not in ("main", _revision(repository)):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        if not content.is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound"}
        body = content.read_bytes()
        headers = {"X-Repo-Commit": _revision(repository), "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        wanted = self.headers.get("Range")
        if wanted is None:
            return 200, body, headers
        first, last = wanted.removeprefix("bytes=").split("-")
        part = body[int(first) : int(last) + 1 if last else None]
        return 206, part, {**headers, "Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"}

    # --- uploads ---

    def _accept(self, path: str, content: bytes) -> dict | list:
        if path == "api/repos/create":
            return self._create(json.loads(content))
        if path == "api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [{**each, "actions": self._upload_action(each)} for each in json.loads(content)["objects"]]
            return {"transfer": "basic", "objects": objects}
        repository, rest = self._repository(path)
        if rest[0] == "commit":
            return self._commit(repository, [json.loads(line) for line in content.splitlines()])
        if rest[0] == "paths-info":
            wanted = set(json.loads(content)["paths"])
            return [entry for entry in _entries(repository) if entry["path"] in wanted]
        files = []
        for name in (file["path"] for file in json.loads(content)["files"]):
            mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": None})
        return {"files": files}

    def _create(self, request: dict) -> dict:
        kind = {"dataset": "datasets"}.get(request.get("type"), "")
        name = f"{request.get('organization') or 'user'}/{request['name']}"
        (self.folder / kind / name).mkdir(parents=True, exist_ok=True)
        return {"url": f"http://{self.headers['Host']}/{kind}{'/' if kind else ''}{name}", "name": name}

    def _upload_action(self, file: dict) -> dict:
        return {"upload": {"href": f"http://{self.headers['Host']}/.{file['oid']}"}}

    def _commit(self, repository: Path, lines: list[dict]) -> dict:
        with (self.folder / ".commits").open("a") as messages:
            messages.write(lines[0]["value"]["summary"] + "\n")
        for line in lines[1:]:
            file = repository / line["value"]["path"]
            if line["key"].startswith("deleted"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "lfsFile":
                (self.folder / f".{line['value']['oid']}").replace(file)
            else:
                file.write_bytes(base64.b64decode(line["value"]["content"]))
        revision, name = _revision(repository), repository.relative_to(self.folder)
        return {"commitOid": revision, "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{revision}"}

    def _send(self, status: int, content: bytes | dict | list, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def _entries(repository: Path) -> list[dict]:
    """List files and folders in the format of the Hub."""
    entries = []
    for file in sorted(repository.rglob("*")):
        path = str(file.relative_to(repository))
        content = b"" if file.is_dir() else file.read_bytes()
        kind = "directory" if file.is_dir() else "file"
        entries.append({"type": kind, "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()})
    return entries


def _revision(repository: Path) -> str:
    """Return a commit id that depends on the content only."""
    return hashlib.sha1(json.dumps(_entries(repository)).encode()).hexdigest()


@contextmanager
def local_hub(folder: Path):
    """Serve `folder`; yields the value for `HF_ENDPOINT`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
