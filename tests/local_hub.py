"""A stand-in for the Hub that gives model repositories from a folder, `ORGANISATION/NAME/files`."""

import hashlib
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, *args, folder: Path, **kwargs):
        self.folder = folder
        super().__init__(*args, **kwargs)

    def do_GET(self):
        body, headers = self._answer()
        self.send_response(200 if body is not None else 404)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if self.command == "GET" and body:
            self.wfile.write(body)

    do_HEAD = do_GET

    def _answer(self) -> tuple[bytes | None, dict[str, str]]:
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            repository = "/".join(path.split("/")[2:4])
            if not (self.folder / repository).is_dir():
                return None, {"X-Error-Code": "RepoNotFound"}
            files = sorted(file for file in (self.folder / repository).rglob("*") if file.is_file())
            tree = [
                {
                    "type": "file",
                    "path": str(file.relative_to(self.folder / repository)),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in files
            ]
            if path.split("/")[4:5] == ["tree"]:
                return json.dumps(tree).encode(), {}
            names = [{"rfilename": entry["path"]} for entry in tree]
            return json.dumps({"id": repository, "sha": COMMIT, "siblings": names}).encode(), {}
        organisation, name, _, _, *file = path.split("/")
        content = self.folder.joinpath(organisation, name, *file)
        if not content.is_file():
            return None, {"X-Error-Code": "EntryNotFound"}
        body = content.read_bytes()
        return body, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}

    def log_message(self, *args):
        pass


@contextmanager
def local_hub(folder: Path):
    """Its address, for `HF_ENDPOINT`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
