"""Creating, describing and deleting repositories, their branches and tags; who a token belongs to."""

from ..hub import KINDS, LocalHub
from ..metadata import read_metadata
from ..replies import HubError, Reply, Request
from ..repository import MAIN, Repository, now
from ..rights import Token, require_token, require_write
from .card_info import card_facts
from .downloads import lfs_facts

RUNTIME = {"stage": "RUNNING", "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}, "gcTimeout": 172800}


def create(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    kind = KINDS[request.json.get("type") or "model"]
    namespace = request.json.get("organization") or require_token(token).user
    author = require_write(token, namespace).user
    name = f"{namespace}/{request.json['name']}"
    private = request.json.get("visibility") == "private" or bool(request.json.get("private"))
    repository = hub.create(kind, name, author, private=private, sdk=request.json.get("sdk"))
    return Reply({"url": f"{hub}/{repository.address}", "name": name, "id": name})


def delete(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    kind = KINDS[request.json.get("type") or "model"]
    namespace = request.json.get("organization") or require_token(token).user
    repository = hub.open(kind, f"{namespace}/{request.json['name']}", token)
    require_write(token, repository.namespace)
    hub.delete(repository)
    return Reply()


def change_settings(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str) -> Reply:
    repository = hub.open(kind, name, token)
    require_write(token, repository.namespace)
    with repository.lock:
        repository.state["private"] = request.json.get("visibility") == "private"
        repository.save()
    return Reply({"private": repository.private})


def check_access(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str) -> Reply:
    repository = hub.open(kind, name, token)
    if request.asks("write"):
        require_write(token, repository.namespace)
    return Reply()


def describe(
    hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str = "main"
) -> Reply:
    repository = hub.open(kind, name, token)
    info = _facts(repository, repository.resolve(revision), with_blobs=request.asks("blobs"))
    wanted = request.query.get("expand")
    if wanted:  # the client then gets these facts only
        info |= {"evalResults": _results(repository, info["sha"]), "usedStorage": hub.used_bytes(repository.namespace)}
        info = {key: value for key, value in info.items() if key in ("_id", "id", *wanted)}
    return Reply(info)


def describe_runtime(hub: LocalHub, request: Request, token: Token | None, name: str) -> Reply:
    hub.open("spaces", name, token)
    return Reply(RUNTIME)


def list_refs(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str) -> Reply:
    repository = hub.open(kind, name, token)

    def starting(prefix: str) -> list[dict]:
        found = {ref: commit for ref, commit in dict(repository.refs).items() if ref.startswith(prefix)}
        names = {ref: ref if prefix == "refs/pr/" else ref.removeprefix(prefix) for ref in found}
        return [{"name": names[ref], "ref": ref, "targetCommit": commit} for ref, commit in found.items()]

    refs = {"branches": starting("refs/heads/"), "tags": starting("refs/tags/"), "converts": []}
    return Reply(refs | ({"pullRequests": starting("refs/pr/")} if request.asks("include_prs") else {}))


def list_commits(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str) -> Reply:
    repository = hub.open(kind, name, token)
    commits = [
        {key: entry[key] for key in ("id", "title", "message", "date")} | {"authors": [{"user": entry["author"]}]}
        for entry in repository.log(repository.resolve(revision))
    ]
    return Reply(commits, headers={"X-Total-Count": str(len(commits))})


def create_branch(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, branch: str) -> Reply:
    if branch.startswith("refs/"):
        raise HubError(400, f"Invalid reference for a branch: {branch}")
    return _add_ref(hub, token, kind, name, f"refs/heads/{branch}", request.json.get("startingPoint") or "main")


def create_tag(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, revision: str) -> Reply:
    return _add_ref(hub, token, kind, name, f"refs/tags/{request.json['tag']}", revision)


def delete_branch(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, branch: str) -> Reply:
    return _delete_ref(hub, token, kind, name, f"refs/heads/{branch}")


def delete_tag(hub: LocalHub, request: Request, token: Token | None, kind: str, name: str, tag: str) -> Reply:
    return _delete_ref(hub, token, kind, name, f"refs/tags/{tag}")


def describe_user(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    token = require_token(token)
    access = {"displayName": "test", "role": "read" if token.read_only else "write", "createdAt": now()}
    user = {"type": "user", "id": token.user, "name": token.user, "fullname": token.user, "isPro": False}
    organisations = [{"type": "org", "name": name} for name in token.organisations]
    return Reply({**user, "orgs": organisations, "auth": {"type": "access_token", "accessToken": access}})


def _add_ref(hub: LocalHub, token: Token | None, kind: str, name: str, ref: str, revision: str) -> Reply:
    repository = hub.open(kind, name, token)
    require_write(token, repository.namespace)
    with repository.lock:
        commit = repository.resolve(revision)
        if ref in repository.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        repository.refs[ref] = commit
        repository.save()
    return Reply()


def _delete_ref(hub: LocalHub, token: Token | None, kind: str, name: str, ref: str) -> Reply:
    repository = hub.open(kind, name, token)
    require_write(token, repository.namespace)
    with repository.lock:
        if ref == MAIN:
            raise HubError(403, "The branch main cannot be deleted")
        if repository.refs.pop(ref, None) is None:
            raise HubError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        repository.save()
    return Reply()


def _facts(repository: Repository, commit: str, with_blobs: bool) -> dict:
    files = repository.files(commit)
    facts = {
        "_id": repository.name,
        "id": repository.name,
        "author": repository.namespace,
        "sha": commit,
        "lastModified": repository.state["commits"][commit]["date"],
        "createdAt": repository.state["created"],
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "siblings": [{"rfilename": path, **(_blob_facts(file) if with_blobs else {})} for path, file in files.items()],
    }
    if repository.kind == "spaces":
        facts |= {"runtime": RUNTIME, "subdomain": repository.name.replace("/", "-").lower()}
        facts["sdk"] = repository.state.get("sdk")
    readme = repository.blobs.path(files["README.md"]["sha256"]).read_text("utf-8") if "README.md" in files else ""
    return facts | card_facts(repository.kind, readme)


def _blob_facts(file: dict) -> dict:
    facts = {"size": file["size"], "blobId": file["oid"]}
    return facts | ({"lfs": {**lfs_facts(file), "sha256": file["sha256"]}} if file["lfs"] else {})


def _results(repository: Repository, commit: str) -> list:
    files = repository.files(commit)
    paths = [path for path in files if path.startswith(".eval_results/") and path.endswith((".yaml", ".yml"))]
    return [
        {"filename": path, **entry}
        for path in paths
        for entry in read_metadata(repository.blobs.path(files[path]["sha256"]).read_text("utf-8"))
    ]
