"""Which function answers which request. The address is matched as it was sent: a quoted `/` belongs to a name."""

import re

from . import collections, discussions, downloads, repositories, uploads

PARTS = {"kind": "models|datasets|spaces", "name": "[^/]+/[^/]+", "path": ".*", "slug": "[^/]+/[^/]+"}
TABLE = [
    # repositories
    ("POST", "/api/repos/create", repositories.create),
    ("DELETE", "/api/repos/delete", repositories.delete),
    ("PUT", "/api/{kind}/{name}/settings", repositories.change_settings),
    ("GET", "/api/{kind}/{name}", repositories.describe),
    ("GET", "/api/{kind}/{name}/revision/{revision}", repositories.describe),
    ("GET", "/api/{kind}/{name}/refs", repositories.list_refs),
    ("GET", "/api/{kind}/{name}/commits/{revision}", repositories.list_commits),
    ("POST", "/api/{kind}/{name}/branch/{branch}", repositories.create_branch),
    ("DELETE", "/api/{kind}/{name}/branch/{branch}", repositories.delete_branch),
    ("POST", "/api/{kind}/{name}/tag/{revision}", repositories.create_tag),
    ("DELETE", "/api/{kind}/{name}/tag/{tag}", repositories.delete_tag),
    ("GET", "/api/{kind}/{name}/auth-check", repositories.check_access),
    ("GET", "/api/spaces/{name}/runtime", repositories.describe_runtime),
    ("GET", "/api/whoami-v2", repositories.describe_user),
    # files
    ("GET", "/api/{kind}/{name}/tree/{revision}", downloads.list_tree),
    ("GET", "/api/{kind}/{name}/tree/{revision}/{path}", downloads.list_tree),
    ("POST", "/api/{kind}/{name}/paths-info/{revision}", downloads.describe_paths),
    ("GET", "/(?:{kind}/)?{name}/resolve/{revision}/{path}", downloads.read),
    ("GET", "/.lfs/{oid}", downloads.read_large),
    # uploads
    ("POST", "/api/validate-yaml", uploads.check_card),
    ("POST", "/api/{kind}/{name}/preupload/{revision}", uploads.choose_modes),
    ("POST", "/(?:{kind}/)?{name}.git/info/lfs/objects/batch", uploads.plan_large),
    ("POST", "/(?:{kind}/)?{name}.git/info/lfs/objects/verify", uploads.verify_large),
    ("PUT", "/.lfs/{oid}", uploads.receive_large),
    ("PUT", "/.lfs/{oid}/{upload}/{number}", uploads.receive_part),
    ("POST", "/.lfs/{oid}/{upload}", uploads.join_parts),
    ("POST", "/api/{kind}/{name}/commit/{revision}", uploads.commit),
    ("GET", "/api/{kind}/{name}/xet-write-token/{revision}", uploads.refuse_xet),
    # discussions and pull requests
    ("GET", "/api/{kind}/{name}/discussions", discussions.list_all),
    ("POST", "/api/{kind}/{name}/discussions", discussions.create),
    ("GET", "/api/{kind}/{name}/discussions/{number}", discussions.describe),
    ("POST", "/api/{kind}/{name}/discussions/{number}/comment", discussions.comment),
    ("POST", "/api/{kind}/{name}/discussions/{number}/status", discussions.change_status),
    ("POST", "/api/{kind}/{name}/discussions/{number}/merge", discussions.merge),
    # collections
    ("GET", "/api/collections", collections.list_all),
    ("POST", "/api/collections", collections.create),
    ("GET", "/api/collections/{slug}", collections.describe),
    ("POST", "/api/collections/{slug}/items", collections.add_item),
]


def _compile(template: str) -> re.Pattern:
    """Turn `{name}` into a group that matches one part of the address, or what `PARTS` says."""
    return re.compile(
        re.sub(
            r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{PARTS.get(name[1], '[^/]+')})", template.replace(".", r"\.")
        )
    )


ROUTES = [(method, _compile(template), function) for method, template, function in TABLE]
