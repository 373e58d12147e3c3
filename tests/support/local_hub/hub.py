"""The Hub as its tests see it: its address, with its repositories, tokens, faults and counters."""

import json
import os
import shutil
import threading
from pathlib import Path

from .blobs import Blobs
from .faults import Faults, Seen, UploadedBytes
from .replies import HubError
from .repository import Repository, now
from .rights import Token, missing, require_visible

KINDS = {"model": "models", "dataset": "datasets", "space": "spaces"}
PART_SIZE = 64 * 2**20


class LocalHub(str):
    """
    The value for `HF_ENDPOINT`.

    Attributes:
        folder (Path): has the files of each repository's `main`.
        tokens (dict, optional): whose each token is; None lets all requests be by `me`, who may write everywhere.
        quota (int, optional): how many bytes a namespace may store.
        part_size (int): files that are larger are uploaded in parts of so many bytes.
        faults (Faults): misbehaviour on command.
        requests (list of Seen): method, path and status of all requests.
        uploaded_bytes (dict): the bytes received for each large file, by its sha256.
    """

    def __new__(cls, address: str, folder: Path, **options: object):
        return super().__new__(cls, address)

    def __init__(
        self,
        address: str,
        folder: Path,
        tokens: dict[str, Token] | None = None,
        quota: int | None = None,
        part_size: int = PART_SIZE,
    ):
        self.folder, self.tokens, self.quota, self.part_size = Path(folder), tokens, quota, part_size
        self.faults, self.requests, self.uploaded_bytes = Faults(), list[Seen](), UploadedBytes()
        self.lock = threading.RLock()
        self.blobs = Blobs(self.folder / ".hub" / "blobs")
        self._repositories: dict[tuple[str, str], Repository] = {}

    def __reduce__(self) -> tuple:
        """Other processes get the address only."""
        return str, (str(self),)

    # --- repositories ---

    def find(self, kind: str, name: str) -> Repository | None:
        """Return a repository, with a commit of what was changed in its folder by hand."""
        tree = self._tree(kind, name)
        with self.lock:
            if not tree.is_dir():
                self._forget(kind, name)
                return None
            if (kind, name) not in self._repositories:
                self._repositories[kind, name] = Repository(kind, name, tree, self._history(kind, name), self.blobs)
        repository = self._repositories[kind, name]
        repository.read_folder()
        return repository

    def open(self, kind: str, name: str, token: Token | None) -> Repository:
        """Return a repository that the owner of a token may see."""
        repository = self.find(kind, name)
        if repository is None:
            raise missing(token)
        require_visible(token, repository)
        return repository

    def create(self, kind: str, name: str, author: str, **settings: object) -> Repository:
        with self.lock:
            if self.find(kind, name) is not None:
                one = kind.removesuffix("s")
                raise HubError(409, f"You already created this {one} repo", url=f"{self}/{self._address(kind, name)}")
            repository = Repository(kind, name, self._tree(kind, name), self._history(kind, name), self.blobs)
            repository.start(author, **settings)
            self._repositories[kind, name] = repository
        return repository

    def delete(self, repository: Repository) -> None:
        with self.lock:
            shutil.rmtree(repository.tree)
            self._forget(repository.kind, repository.name)

    def note_commit(self, title: str) -> None:
        """Add a line to the list of all commits, which tests read."""
        with self.lock, (self.folder / ".commits").open("a", encoding="utf-8") as file:
            file.write(title + "\n")

    def used_bytes(self, namespace: str) -> int:
        """Return what all contents of a namespace take, each counted once."""
        with self.lock:
            mine = [repository for repository in self._repositories.values() if repository.namespace == namespace]
        sizes = {}
        for repository in mine:
            for commit in list(repository.state["commits"].values()):
                sizes |= {file["sha256"]: file["size"] for file in commit["files"].values()}
        return sum(sizes.values())

    def require_space(self, repository: Repository, size: int) -> None:
        if self.quota is not None and self.used_bytes(repository.namespace) + size > self.quota:
            kind = "Private" if repository.private else "Public"
            raise HubError(
                403,
                f"{kind} repository storage limit reached, please upgrade your plan to increase your storage limit",
            )

    def _address(self, kind: str, name: str) -> str:
        return name if kind == "models" else f"{kind}/{name}"

    def _tree(self, kind: str, name: str) -> Path:
        return self.folder / self._address(kind, name)

    def _history(self, kind: str, name: str) -> Path:
        return self.folder / ".hub" / kind / f"{name}.json"

    def _forget(self, kind: str, name: str) -> None:
        self._repositories.pop((kind, name), None)
        self._history(kind, name).unlink(missing_ok=True)

    # --- collections ---

    def read_collections(self) -> dict[str, dict]:
        file = self.folder / ".hub" / "collections.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def write_collection(self, collection: dict) -> None:
        collection["lastUpdated"] = now()
        partial = self.folder / ".hub" / "collections.partial"
        partial.write_text(json.dumps(self.read_collections() | {collection["slug"]: collection}), encoding="utf-8")
        os.replace(partial, self.folder / ".hub" / "collections.json")
