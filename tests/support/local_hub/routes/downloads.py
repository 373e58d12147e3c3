"""Listing and reading the files of a revision."""

from ..blobs import File, pointer
from ..hub import LocalHub
from ..replies import HubError, Reply, Request
from ..repository import Repository, folders, within
from ..rights import Token


def list_tree(
    hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str, path: str = ""
) -> Reply:
    repository = hub.open(kind, name, token)
    commit = repository.resolve(revision)
    path = path.strip("/")
    files = within(repository.files(commit), path)
    if path and (not files or path in files):
        raise HubError(404, f"{path} is no folder of {name} at {revision}", "EntryNotFound")
    entries = [entry for entry in _entries(repository, commit, request.asks("expand")) if _is_below(entry, path)]
    if not request.asks("recursive"):
        depth = path.count("/") + 1 if path else 0
        entries = [entry for entry in entries if entry["path"].count("/") == depth]
    return Reply(entries)


def describe_paths(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str) -> Reply:
    repository = hub.open(kind, name, token)
    asked = request.form()
    paths = {path.strip("/") for path in asked.get("paths", [])}
    expand = asked.get("expand", [""])[0].lower() == "true"
    entries = _entries(repository, repository.resolve(revision), expand)
    return Reply([entry for entry in entries if entry["path"] in paths])


def read(
    hub: LocalHub, request: Request, token: Token | None, name: str, revision: str, path: str, kind: str = "models"
) -> Reply:
    repository = hub.open(kind, name, token)
    commit = repository.resolve(revision)
    file = repository.files(commit).get(path)
    if file is None:
        reply = HubError(404, f"{path} is not in {name} at {revision}", "EntryNotFound").reply()
        reply.headers["X-Repo-Commit"] = commit  # by which the client remembers that there is no such file
        return reply
    headers = {"X-Repo-Commit": commit, "ETag": f'"{file["oid"]}"'}
    if not file["lfs"]:
        return Reply(repository.blobs.path(file["sha256"]), headers=headers)
    headers |= {"X-Linked-ETag": f'"{file["sha256"]}"', "X-Linked-Size": str(file["size"])}
    # Under another name of this machine: the client takes these headers only if it is sent to another host, as the
    # real Hub does with large files.
    headers["Location"] = f"{hub.replace('127.0.0.1', 'localhost')}/.lfs/{file['sha256']}"
    return Reply(b"", 302, headers)


def read_large(hub: LocalHub, request: Request, token: Token | None, oid: str) -> Reply:
    if not hub.blobs.has(oid):
        raise HubError(404, f"There is no large file {oid}", "EntryNotFound")
    return Reply(hub.blobs.path(oid), headers={"ETag": f'"{oid}"'})


def lfs_facts(file: File) -> dict:
    size = file["size"]
    return {"oid": file["sha256"], "size": size, "pointerSize": len(pointer(file["sha256"], size))}


def _entries(repository: Repository, commit: str, expand: bool) -> list[dict]:
    """Describe all folders and files; `expand` adds the commit that last changed each."""
    files = repository.files(commit)
    entries = [{"type": "directory", "path": path, "size": 0, "oid": oid} for path, oid in folders(files).items()]
    for path, file in files.items():
        large = {"lfs": lfs_facts(file)} if file["lfs"] else {}
        entries.append({"type": "file", "path": path, "size": file["size"], "oid": file["oid"], **large})
    if expand:
        for entry in entries:
            last = repository.last_change(commit, entry["path"])
            entry["lastCommit"] = {key: last[key] for key in ("id", "title", "date")}
    return sorted(entries, key=lambda entry: entry["path"])


def _is_below(entry: dict, folder: str) -> bool:
    return not folder or entry["path"].startswith(f"{folder}/")
