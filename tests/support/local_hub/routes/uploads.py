"""Uploading: which files are large, the large files themselves, and the commit."""

import base64
import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from ..blobs import is_large
from ..hub import LocalHub
from ..metadata import check_metadata, check_results
from ..replies import HubError, Reply, Request
from ..repository import Files, Repository, within
from ..rights import Token, require_commit, require_pull_request
from . import discussions


def check_card(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    """Check the metadata of a README; the client wants plain text or JSON."""
    errors, warnings = check_metadata(request.json["content"], request.json.get("repoType") or "model")
    status = 400 if errors else 200
    if "text/plain" in request.headers.get("Accept", ""):
        return Reply("\n".join(errors or warnings).encode(), status)
    return Reply({"errors": _messages(errors), "warnings": _messages(warnings)}, status)


def choose_modes(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str) -> Reply:
    """Say how each file is to be sent, and what the repository has under its name."""
    repository = hub.open(kind, name, token)
    _require_right(token, repository, revision, request.asks("create_pr"))
    present = repository.files(repository.resolve(revision))
    files = []
    for asked in request.json["files"]:
        large = is_large(asked["path"], asked["size"], base64.b64decode(asked["sample"]))
        old = present.get(asked["path"])
        oid = old and old["sha256" if old["lfs"] else "oid"]
        mode = "lfs" if large else "regular"
        files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return Reply({"files": files, "commitOid": repository.resolve(revision)})


def plan_large(hub: LocalHub, request: Request, token: Token | None, name: str, kind: str = "models") -> Reply:
    """Say where each large file goes, whole or in parts; one that is there already goes nowhere."""
    repository = hub.open(kind, name, token)
    ref = request.json.get("ref")  # a pull request that is yet to be opened has none
    _require_right(token, repository, ref["name"] if ref else "main", opens_pull_request=ref is None)
    absent = [asked for asked in request.json["objects"] if not hub.blobs.has(asked["oid"])]
    hub.require_space(repository, sum(asked["size"] for asked in absent))
    verify = {"href": f"{hub}/{repository.address}.git/info/lfs/objects/verify"}
    objects = [
        {**asked, **({"actions": {"upload": _destination(hub, asked), "verify": verify}} if asked in absent else {})}
        for asked in request.json["objects"]
    ]
    in_parts = any(asked["size"] > hub.part_size for asked in absent)
    return Reply({"transfer": "multipart" if in_parts else "basic", "objects": objects})


def receive_large(hub: LocalHub, request: Request, token: Token | None, oid: str) -> Reply:
    hub.blobs.receive(_counted(hub, oid, request), expected=oid)
    return Reply()


def receive_part(hub: LocalHub, request: Request, token: Token | None, oid: str, upload: str, number: str) -> Reply:
    etag = hub.blobs.receive_part(upload, int(number), _counted(hub, oid, request))
    return Reply(headers={"ETag": f'"{etag}"'})


def join_parts(hub: LocalHub, request: Request, token: Token | None, oid: str, upload: str) -> Reply:
    parts = [(part["partNumber"], part["etag"].strip('"')) for part in request.json["parts"]]
    hub.blobs.join_parts(upload, parts, sha256=oid)
    return Reply()


def verify_large(hub: LocalHub, request: Request, token: Token | None, name: str, kind: str = "models") -> Reply:
    oid, size = request.json["oid"], request.json["size"]
    if not hub.blobs.has(oid) or hub.blobs.size(oid) != size:
        raise HubError(404, f"The large file {oid} of {size} bytes was not received")
    return Reply()


def refuse_xet(hub: LocalHub, request: Request, token: Token | None, **names: str) -> Reply:
    raise HubError(400, "The local Hub has no Xet server: set HF_HUB_DISABLE_XET=1")


def commit(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str) -> Reply:
    """Make a commit; the body has a line of JSON with the message, and one for each file."""
    repository = hub.open(kind, name, token)
    opens = request.asks("create_pr")
    author = _require_right(token, repository, revision, opens).user
    header, *lines = map(json.loads, request.body.splitlines())
    message, parent = header["value"], header["value"].get("parentCommit", "")
    with repository.lock:
        added = {line["value"]["path"]: _file(hub, line) for line in lines if not line["key"].startswith("deleted")}
        hub.require_space(repository, sum(file["size"] for file in added.values() if not file["lfs"]))
        _check_cards(repository, added)
        removed = [line["value"]["path"].strip("/") for line in lines if line["key"].startswith("deleted")]
        ref, reply = repository.full_ref(revision), {}
        if opens:
            base = repository.resolve(parent or revision)
            number = discussions.add(
                repository, author, message["summary"], message.get("description", ""), base=base, status="open"
            )
            ref, parent = f"refs/pr/{number}", ""
            reply["pullRequestUrl"] = f"{hub}/{repository.address}/discussions/{number}"
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        oid = repository.commit(
            ref,
            lambda files: _changed(files, added, removed),
            author,
            message["summary"],
            message.get("description", ""),
            parent,
        )
        discussions.note_commit(repository, ref, oid)
    hub.note_commit(message["summary"])
    return Reply({"commitOid": oid, "commitUrl": f"{hub}/{repository.address}/commit/{oid}", "success": True, **reply})


def _require_right(token: Token | None, repository: Repository, revision: str, opens_pull_request: bool) -> Token:
    if opens_pull_request:
        return require_pull_request(token)
    return require_commit(token, repository, revision)


def _destination(hub: LocalHub, asked: dict) -> dict:
    whole = f"{hub}/.lfs/{asked['oid']}"
    if asked["size"] <= hub.part_size:
        return {"href": whole}
    upload = hub.blobs.start_parts()
    numbers = range(1, -(-asked["size"] // hub.part_size) + 1)
    parts = {str(number): f"{whole}/{upload}/{number}" for number in numbers}
    return {"href": f"{whole}/{upload}", "header": {"chunk_size": str(hub.part_size), **parts}}


def _counted(hub: LocalHub, oid: str, request: Request) -> Iterator[bytes]:
    for chunk in request.content:
        hub.uploaded_bytes.add(oid, len(chunk))
        yield chunk


def _file(hub: LocalHub, line: dict) -> dict:
    """Return the entry of a file in a commit; a small file comes with the line."""
    path = line["value"]["path"]
    if {"", ".", "..", ".git"} & set(path.split("/")):
        raise HubError(400, f"Invalid path: {path}")
    if line["key"] == "file":
        return hub.blobs.describe(hub.blobs.receive([base64.b64decode(line["value"]["content"])]), large=False)
    if not hub.blobs.has(line["value"]["oid"]):
        raise HubError(400, f"The large file {path} was not uploaded")
    return hub.blobs.describe(line["value"]["oid"], large=True)


def _changed(files: Files, added: Files, removed: list[str]) -> Files:
    for path in removed:
        gone = within(files, path)
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        files = {name: file for name, file in files.items() if name not in gone}
    return files | added


def _check_cards(repository: Repository, added: Files) -> None:
    """Refuse a card or results that the Hub could not read."""
    for path, file in added.items():
        is_results = str(PurePosixPath(path).parent) == ".eval_results" and path.endswith((".yaml", ".yml"))
        if path != "README.md" and not is_results:
            continue
        content = repository.blobs.path(file["sha256"]).read_text(encoding="utf-8")
        kind = repository.kind.removesuffix("s")
        errors = check_results(content) if is_results else check_metadata(content, kind)[0]
        if errors:
            raise HubError(400, f"Invalid metadata in {path}: {'; '.join(errors)}", errors=_messages(errors))


def _messages(texts: list[str]) -> list[dict]:
    return [{"message": text} for text in texts]
