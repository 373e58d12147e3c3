"""
Repositories with real revisions. The head of `main` lies in a folder as plain files, which may also be changed by
hand; the history lies beside it in `.hub`.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from huggingface_hub.utils import sha

from .blobs import Blobs, File
from .replies import HubError

MAIN = "refs/heads/main"
Files = dict[str, File]  # by path


class Repository:
    """
    One model, dataset or Space. `kind` is `models`, `datasets` or `spaces`; `name` is `NAMESPACE/NAME`. Whoever reads
    and then changes a repository holds its `lock`.
    """

    def __init__(self, kind: str, name: str, tree: Path, history: Path, blobs: Blobs):
        self.kind, self.name, self.tree, self.history, self.blobs = kind, name, tree, history, blobs
        self.lock = threading.RLock()
        self.state: dict = {}
        if history.is_file():
            self.state = json.loads(history.read_text(encoding="utf-8"))

    @property
    def namespace(self) -> str:
        return self.name.split("/")[0]

    @property
    def private(self) -> bool:
        return self.state.get("private", False)

    @property
    def refs(self) -> dict[str, str]:
        """The commit of each full name: `refs/heads/main`, `refs/tags/v1`, `refs/pr/1`."""
        return self.state["refs"]

    @property
    def address(self) -> str:
        """The path of the repository's page."""
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def start(self, author: str, **settings: object) -> None:
        self.state = {"refs": {}, "commits": {}, "discussions": [], "seen": {}, "created": now(), **settings}
        self.tree.mkdir(parents=True, exist_ok=True)
        self._add_commit(MAIN, {}, author, "initial commit")
        self.save()

    def save(self) -> None:
        self.history.parent.mkdir(parents=True, exist_ok=True)
        partial = self.history.with_suffix(".partial")
        partial.write_text(json.dumps(self.state), encoding="utf-8")
        os.replace(partial, self.history)

    def read_folder(self) -> None:
        """Make a commit of the files that were copied into the folder, or changed there, by hand."""
        with self.lock:
            seen = self._look()
            if self.state and seen == self.state["seen"]:
                return
            if not self.state:
                self.start("system")
            old, before = self.files(self.refs[MAIN]), self.state["seen"]
            files = {
                path: old[path]
                if path in old and before.get(path) == mark
                else self.blobs.store(path, self.tree / path)
                for path, mark in seen.items()
            }
            self.state["seen"] = seen
            if files != old:
                self._add_commit(MAIN, files, "system", "Files changed by hand")
            self.save()

    # --- revisions ---

    def full_ref(self, revision: str) -> str | None:
        """Return the full name of a branch, a tag or a pull request; None if there is no such one."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def resolve(self, revision: str) -> str:
        """Return the commit of a branch, a tag, a pull request, or the first letters of a commit."""
        ref = self.full_ref(revision)
        if ref is not None:
            return self.refs[ref]
        known = list(self.state["commits"]) if len(revision) >= 7 else []
        found = [commit for commit in known if commit.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def files(self, commit: str) -> Files:
        return self.state["commits"][commit]["files"]

    def log(self, commit: str) -> Iterator[dict]:
        """Yield the commits from a commit to the first one."""
        while commit is not None:
            yield self.state["commits"][commit]
            commit = self.state["commits"][commit]["parent"]

    def last_change(self, commit: str, path: str) -> dict:
        """Return the commit that last changed a file or a folder."""
        for entry in self.log(commit):
            parent = self.files(entry["parent"]) if entry["parent"] else {}
            if within(entry["files"], path) != within(parent, path):
                return entry
        raise KeyError(path)

    def commit(
        self, ref: str, change: Callable[[Files], Files], author: str, title: str, message: str = "", parent: str = ""
    ) -> str:
        """
        Add a commit to a branch or a pull request. `change` gets the files of its head, whatever was committed since
        the author looked, unless `parent` says which commit that must be.
        """
        with self.lock:
            head = self.refs[ref]
            if parent and not head.startswith(parent):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = change(dict(self.files(head)))
            commit = self._add_commit(ref, files, author, title, message)
            if ref == MAIN:
                self._write_folder(self.files(head), files)
            self.save()
            return commit

    def discussion_of(self, ref: str) -> dict | None:
        found = (each for each in self.state["discussions"] if ref == f"refs/pr/{each['num']}")
        return next(found, None)

    def _add_commit(self, ref: str, files: Files, author: str, title: str, message: str = "") -> str:
        entry = {"parent": self.refs.get(ref), "title": title, "message": message, "author": author, "date": now()}
        entry["files"] = dict(sorted(files.items()))
        entry["id"] = hashlib.sha1(json.dumps([len(self.state["commits"]), entry]).encode()).hexdigest()
        self.state["commits"][entry["id"]] = entry
        self.refs[ref] = entry["id"]
        return entry["id"]

    # --- the folder of `main` ---

    def _look(self) -> dict[str, list[int]]:
        """Return size and time of each file, by which a change is noticed."""
        files = ((path, path.stat()) for path in self.tree.rglob("*") if path.is_file())
        return {str(path.relative_to(self.tree)): [found.st_size, found.st_mtime_ns] for path, found in files}

    def _write_folder(self, old: Files, new: Files) -> None:
        for path in old.keys() - new.keys():
            (self.tree / path).unlink()
            for folder in (self.tree / path).parents:
                if folder == self.tree or any(folder.iterdir()):
                    break
                folder.rmdir()
        for path, file in new.items():
            if old.get(path) != file:
                (self.tree / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.blobs.path(file["sha256"]), self.tree / path)
        self.state["seen"] = self._look()


def within(files: Files, path: str) -> Files:
    """Return a file, or the files of a folder; those of the root are all."""
    return {name: file for name, file in files.items() if not path or name == path or name.startswith(f"{path}/")}


def folders(files: Files) -> dict[str, str]:
    """Return the identity of each folder, which changes with what is in it."""
    paths = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    return {path: sha.git_hash(json.dumps(within(files, path)).encode()) for path in sorted(paths)}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
