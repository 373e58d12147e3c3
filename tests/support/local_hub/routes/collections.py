"""Collections: lists of repositories."""

import re
import uuid

from ..hub import KINDS, LocalHub
from ..replies import HubError, Reply, Request
from ..rights import Token, require_write


def list_all(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    owners = request.query.get("owner")
    found = [each for each in hub.read_collections().values() if _is_visible(each, token)]
    found = [each for each in found if not owners or each["owner"]["name"] in owners]
    return Reply([{key: value for key, value in each.items() if key != "position"} for each in found])


def create(hub: LocalHub, request: Request, token: Token | None) -> Reply:
    asked = request.json
    namespace = asked["namespace"]
    require_write(token, namespace)
    with hub.lock:
        for other in hub.read_collections().values():
            if other["owner"]["name"] == namespace and other["title"] == asked["title"]:
                raise HubError(409, "This collection already exists", slug=other["slug"])
        words = "-".join(re.findall(r"[a-z0-9]+", asked["title"].lower()))
        collection = {
            "slug": f"{namespace}/{words}-{uuid.uuid4().hex[:24]}",
            "title": asked["title"],
            "description": asked.get("description"),
            "owner": {"name": namespace, "type": "user"},
            "items": [],
            "private": asked.get("private", False),
            "position": 0,
            "theme": "blue",
            "upvotes": 0,
        }
        hub.write_collection(collection)
    return Reply(collection)


def describe(hub: LocalHub, request: Request, token: Token | None, slug: str) -> Reply:
    return Reply(_find(hub, slug, token))


def add_item(hub: LocalHub, request: Request, token: Token | None, slug: str) -> Reply:
    with hub.lock:
        collection = _find(hub, slug, token)
        require_write(token, collection["owner"]["name"])
        item = request.json["item"]
        if item["type"] in KINDS:
            hub.open(KINDS[item["type"]], item["id"], token)
        if any((other["id"], other["type"]) == (item["id"], item["type"]) for other in collection["items"]):
            raise HubError(409, "This item is in the collection already")
        entry = {"_id": uuid.uuid4().hex[:24], **item, "position": len(collection["items"])}
        note = request.json.get("note")
        collection["items"].append(entry | ({"note": {"text": note}} if note else {}))
        hub.write_collection(collection)
    return Reply(collection)


def _find(hub: LocalHub, slug: str, token: Token | None) -> dict:
    collection = hub.read_collections().get(slug)
    if collection is None or not _is_visible(collection, token):
        raise HubError(404, f"There is no collection {slug}")
    return collection


def _is_visible(collection: dict, token: Token | None) -> bool:
    return not collection["private"] or bool(token and token.belongs_to(collection["owner"]["name"]))
