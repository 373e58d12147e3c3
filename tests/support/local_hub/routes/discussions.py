"""Discussions and pull requests. The commits of pull request N are at `refs/pr/N`."""

import uuid

from ..hub import LocalHub
from ..replies import HubError, Reply, Request
from ..repository import MAIN, Files, Repository, now
from ..rights import Token, require_pull_request, require_token, require_write


def list_all(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str) -> Reply:
    found = hub.open(kind, name, token).state["discussions"]
    wanted = {key: request.query[key][0] for key in ("type", "status", "author") if key in request.query}
    if wanted.get("type", "all") != "all":
        found = [each for each in found if each["isPullRequest"] == (wanted["type"] == "pull_request")]
    if wanted.get("status", "all") != "all":
        opens = wanted["status"] == "open"
        found = [each for each in found if (each["status"] in ("open", "draft")) == opens]
    if "author" in wanted:
        found = [each for each in found if each["author"]["name"] == wanted["author"]]
    newest_first = [{key: value for key, value in each.items() if key != "events"} for each in reversed(found)]
    return Reply({"discussions": newest_first, "count": len(found), "start": 0})


def create(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str) -> Reply:
    repository = hub.open(kind, name, token)
    asked = request.json
    if asked.get("pullRequest"):
        author, base, status = require_pull_request(token).user, repository.resolve("main"), "draft"
    else:
        author, base, status = require_token(token).user, None, "open"
    with repository.lock:
        number = add(repository, author, asked["title"], asked.get("description", ""), base, status)
        repository.save()
    return Reply({"num": number, "pullRequest": bool(base)})


def describe(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, number: str) -> Reply:
    repository = hub.open(kind, name, token)
    discussion = _find(repository, number)
    conflicts = _conflicts(repository, discussion) if discussion["status"] in ("open", "draft") else []
    return Reply({**discussion, "filesWithConflicts": conflicts})


def comment(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, number: str) -> Reply:
    return _add_event(hub, token, kind, name, number, "newMessage", _comment(request.json["comment"]))


def change_status(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, number: str) -> Reply:
    repository = hub.open(kind, name, token)
    discussion = _find(repository, number)
    if require_token(token).user != discussion["author"]["name"]:
        require_write(token, repository.namespace)
    if discussion["status"] == "merged":
        raise HubError(400, "A merged pull request stays merged")
    with repository.lock:
        discussion["status"] = request.json["status"]
    if request.json.get("comment"):
        _add_event(hub, token, kind, name, number, "newMessage", _comment(request.json["comment"]))
    return _add_event(hub, token, kind, name, number, "newStatus", _status(request.json["status"]))


def merge(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, number: str) -> Reply:
    """Add what a pull request changes to `main`, as one commit."""
    repository = hub.open(kind, name, token)
    user = require_write(token, repository.namespace).user
    with repository.lock:
        discussion = _find(repository, number)
        if not discussion["isPullRequest"] or discussion["status"] not in ("open", "draft"):
            raise HubError(400, f"Number {number} is no open pull request")
        conflicts = _conflicts(repository, discussion)
        if conflicts:
            raise HubError(409, f"These files were changed on both sides: {', '.join(conflicts)}")
        changes = _changes(repository, discussion)
        title = f"{discussion['title']} (#{number})"
        oid = repository.commit(MAIN, lambda files: _merged(files, changes), user, title)
        discussion["status"] = "merged"
        discussion["changes"]["mergeCommitId"] = oid
    hub.note_commit(title)
    if request.json.get("comment"):
        _add_event(hub, token, kind, name, number, "newMessage", _comment(request.json["comment"]))
    return _add_event(hub, token, kind, name, number, "newStatus", _status("merged"))


def add(repository: Repository, author: str, title: str, description: str, base: str | None, status: str) -> int:
    """Open a discussion, or a pull request from the commit `base`; return its number. The caller saves."""
    number = len(repository.state["discussions"]) + 1
    discussion = {
        "num": number,
        "title": title,
        "author": {"name": author},
        "createdAt": now(),
        "status": status,
        "repo": {"name": repository.name, "type": repository.kind.removesuffix("s")},
        "isPullRequest": base is not None,
        "events": [_event(author, _comment(description))],
    }
    if base is not None:
        discussion["changes"] = {"base": MAIN, "baseCommit": base}
        repository.refs[f"refs/pr/{number}"] = base
    repository.state["discussions"].append(discussion)
    return number


def note_commit(repository: Repository, ref: str, oid: str) -> None:
    """Write down a commit that was made in a pull request."""
    discussion = repository.discussion_of(ref)
    if discussion is not None:
        entry = repository.state["commits"][oid]
        data = {"type": "commit", "data": {"subject": entry["title"], "oid": oid}}
        discussion["events"].append(_event(entry["author"], data))
        repository.save()


def _find(repository: Repository, number: str) -> dict:
    found = [each for each in repository.state["discussions"] if str(each["num"]) == number]
    if not found:
        raise HubError(404, f"There is no discussion {number}", "EntryNotFound")
    return found[0]


def _add_event(hub: LocalHub, token: Token | None, kind: str, name: str, number: str, key: str, data: dict) -> Reply:
    event = _event(require_token(token).user, data)
    repository = hub.open(kind, name, token)
    with repository.lock:
        _find(repository, number)["events"].append(event)
        repository.save()
    return Reply({key: event})


def _event(author: str, data: dict) -> dict:
    return {"id": uuid.uuid4().hex[:24], "createdAt": now(), "author": {"name": author}, **data}


def _comment(text: str) -> dict:
    latest = {"raw": text, "html": text, "updatedAt": now()}
    return {"type": "comment", "data": {"edited": False, "hidden": False, "latest": latest, "history": []}}


def _status(status: str) -> dict:
    return {"type": "status-change", "data": {"status": status}}


def _changes(repository: Repository, discussion: dict) -> dict:
    """Return the new entry of each file that a pull request changes; None for those that it deletes."""
    before = repository.files(discussion["changes"]["baseCommit"])
    after = repository.files(repository.refs[f"refs/pr/{discussion['num']}"])
    return {path: after.get(path) for path in before | after if before.get(path) != after.get(path)}


def _conflicts(repository: Repository, discussion: dict) -> list[str]:
    if not discussion["isPullRequest"]:
        return []
    before = repository.files(discussion["changes"]["baseCommit"])
    main = repository.files(repository.refs[MAIN])
    changes = _changes(repository, discussion)
    return [path for path, file in changes.items() if main.get(path) not in (before.get(path), file)]


def _merged(files: Files, changes: dict) -> Files:
    merged = files | changes
    return {path: file for path, file in merged.items() if file is not None}
