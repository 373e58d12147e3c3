"""The local Hub of the tests answers the Hub's own clients as the Hub does, and misbehaves on command."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import forked
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, constants, snapshot_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from local_hub import Token, local_hub
from ports import free_port

TOKENS = {
    "hf_x": Token("me", organisations=("lab",)),
    "hf_read": Token("me", read_only=True),
    "hf_other": Token("someone"),
}


@pytest.fixture
def waits(monkeypatch):
    """The waits of the client before it tries again, in seconds; here it does not wait."""
    waits = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(**vars(time) | {"sleep": waits.append}))
    return waits


@pytest.fixture(autouse=True)
def online(monkeypatch, tmp_path, waits):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with local_hub(tmp_path / "hub", tokens=TOKENS, part_size=50_000) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", str(hub))  # cards are checked there, whatever an API's endpoint is
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants._HF_DEFAULT_ENDPOINT, hub)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub, token="hf_x")


@pytest.fixture
def repository(api):
    return api.create_repo("me/model").repo_id


def put(api, repository, **files):
    """Commit files, whose names have `_` for a dot."""
    operations = [CommitOperationAdd(name.replace("_", "."), content) for name, content in files.items()]
    return api.create_commit(repository, operations, commit_message=f"Add {', '.join(files)}")


def read(api, repository, name, revision=None):
    return Path(api.hf_hub_download(repository, name, revision=revision)).read_text()


def status_of(call, *arguments, **options):
    with pytest.raises(HfHubHTTPError) as error:
        call(*arguments, **options)
    return error.value.response.status_code, str(error.value)


# --- revisions -------------------------------------------------------------------------------------------------------


def test_commits_branches_and_tags_keep_their_files(api, repository):
    first = put(api, repository, a_txt=b"old")
    api.create_tag(repository, tag="v1")
    api.create_branch(repository, branch="next")
    second = put(api, repository, a_txt=b"new")
    api.upload_file(path_or_fileobj=b"other", path_in_repo="a.txt", repo_id=repository, revision="next")
    contents = {"main": "new", "next": "other", "v1": "old", first.oid: "old", second.oid: "new"}
    assert {revision: read(api, repository, "a.txt", revision) for revision in contents} == contents
    titles = [commit.title for commit in api.list_repo_commits(repository)]
    assert titles == ["Add a_txt", "Add a_txt", "initial commit"]
    refs = api.list_repo_refs(repository)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first.oid}
    assert {ref.name for ref in refs.branches} == {"main", "next"}
    assert api.model_info(repository, revision="v1").sha == first.oid
    api.delete_tag(repository, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        read(api, repository, "a.txt", "v1")
    with pytest.raises(EntryNotFoundError):
        read(api, repository, "b.txt")
    assert status_of(api.create_branch, repository, branch="next")[0] == 409
    api.create_branch(repository, branch="next", exist_ok=True)


def test_folder_has_the_files_of_main_and_may_be_changed_by_hand(api, hub, repository):
    folder = hub.folder / "me" / "model"
    put(api, repository, a_txt=b"a", b_txt=b"b")
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.txt": "a", "b.txt": "b"}
    (folder / "a.txt").write_text("changed")
    (folder / "b.txt").unlink()
    assert read(api, repository, "a.txt") == "changed"
    assert api.list_repo_files(repository) == ["a.txt"]
    made = hub.folder / "datasets" / "lab" / "clips"
    made.mkdir(parents=True)
    (made / "rows.csv").write_text("1")
    assert api.dataset_info("lab/clips").siblings[0].rfilename == "rows.csv"
    sha = api.dataset_info("lab/clips").sha
    assert (
        sha == api.dataset_info("lab/clips").sha and len(api.list_repo_commits("lab/clips", repo_type="dataset")) == 2
    )
    assert (hub.folder / ".commits").read_text().splitlines() == ["Add a_txt, b_txt"]


def test_history_outlives_the_server(api, hub, repository):
    commit = put(api, repository, a_txt=b"a")
    api.create_tag(repository, tag="v1")
    with local_hub(hub.folder) as again:
        assert HfApi(endpoint=again).model_info(repository, revision="v1").sha == commit.oid
    assert pickle.loads(pickle.dumps(hub)) == str(hub)  # other processes get the address


def test_files_and_folders_are_deleted_in_a_commit(api, hub, repository):
    operations = [CommitOperationAdd(path, b"x") for path in ("a.txt", "sub/b.txt", "sub/deep/c.txt", "sub2/d.txt")]
    api.create_commit(repository, operations, commit_message="Add")
    deletions = [CommitOperationDelete("a.txt"), CommitOperationDelete("sub/")]
    api.create_commit(repository, deletions, commit_message="Delete")
    assert api.list_repo_files(repository) == ["sub2/d.txt"]
    assert [path.name for path in (hub.folder / "me" / "model").iterdir()] == ["sub2"]
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.delete_file("a.txt", repository)


def test_commit_on_an_older_parent_is_refused(api, repository):
    parent = put(api, repository, a_txt=b"a").oid
    put(api, repository, b_txt=b"b")
    operations = [CommitOperationAdd("c.txt", b"c")]
    options = {"operations": operations, "commit_message": "c", "parent_commit": parent}
    assert status_of(api.create_commit, repository, **options)[0] == 412
    assert "c.txt" not in api.list_repo_files(repository)


def test_commits_made_at_once_lose_nothing(hub, api, repository):
    """Each client looks at the repository before the others have committed."""

    def push(number):
        client = HfApi(endpoint=hub, token="hf_x")
        return client.upload_file(path_or_fileobj=b"%d" % number, path_in_repo=f"{number}.txt", repo_id=repository).oid

    with ThreadPoolExecutor(8) as threads:
        commits = list(threads.map(push, range(24)))
    assert sorted(api.list_repo_files(repository)) == sorted(f"{number}.txt" for number in range(24))
    assert {commit.commit_id for commit in api.list_repo_commits(repository)} >= set(commits)
    assert len(api.list_repo_commits(repository)) == 25


def test_tree_tells_sizes_large_files_and_last_commits(api, repository):
    put(api, repository, a_txt=b"a")
    content = os.urandom(1000)
    api.upload_file(
        path_or_fileobj=content, path_in_repo="sub/w.safetensors", repo_id=repository, commit_message="Two"
    )
    entries = {entry.path: entry for entry in api.list_repo_tree(repository, recursive=True, expand=True)}
    assert set(entries) == {"a.txt", "sub", "sub/w.safetensors"}
    assert entries["a.txt"].last_commit.title == "Add a_txt" and entries["a.txt"].lfs is None
    assert entries["sub/w.safetensors"].lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.path for entry in api.list_repo_tree(repository)] == ["a.txt", "sub"]
    (info,) = api.get_paths_info(repository, ["sub/w.safetensors", "missing"], expand=True)
    assert info.size == 1000 and info.last_commit.title == "Two"
    assert api.file_exists(repository, "a.txt") and not api.file_exists(repository, "b.txt")


# --- pull requests and collections -----------------------------------------------------------------------------------


def test_pull_request_of_a_stranger_is_reviewed_and_merged(api, hub, repository):
    put(api, repository, a_txt=b"a", b_txt=b"b")
    stranger = HfApi(endpoint=hub, token="hf_other")
    opened = stranger.upload_file(path_or_fileobj=b"new", path_in_repo="a.txt", repo_id=repository, create_pr=True)
    assert (opened.pr_num, opened.pr_revision) == (1, "refs/pr/1")
    stranger.upload_file(path_or_fileobj=b"c", path_in_repo="c.txt", repo_id=repository, revision="refs/pr/1")
    assert read(api, repository, "a.txt") == "a" and read(api, repository, "a.txt", "refs/pr/1") == "new"
    put(api, repository, b_txt=b"b2")
    assert [ref.ref for ref in api.list_repo_refs(repository, include_pull_requests=True).pull_requests] == [
        "refs/pr/1"
    ]
    (listed,) = api.get_repo_discussions(repository, discussion_type="pull_request", discussion_status="open")
    assert (listed.num, listed.author, listed.is_pull_request) == (1, "someone", True)
    assert status_of(stranger.merge_pull_request, repository, 1)[0] == 403
    api.merge_pull_request(repository, 1)
    assert [read(api, repository, f"{name}.txt") for name in "abc"] == ["new", "b2", "c"]
    details = api.get_discussion_details(repository, 1)
    assert details.status == "merged" and details.merge_commit_oid == api.model_info(repository).sha
    assert [event.type for event in details.events] == ["comment", "commit", "commit", "status-change"]


def test_discussions_are_opened_answered_and_closed(api, repository):
    discussion = api.create_discussion(repository, "A question", description="Why?")
    api.comment_discussion(repository, discussion.num, "Because.")
    api.change_discussion_status(repository, discussion.num, "closed", comment="Done")
    details = api.get_discussion_details(repository, discussion.num)
    contents = [event.content for event in details.events if event.type == "comment"]
    assert (details.status, contents) == ("closed", ["Why?", "Because.", "Done"])
    draft = api.create_pull_request(repository, "Later")
    assert (draft.status, draft.git_reference, draft.num) == ("draft", "refs/pr/2", 2)
    assert [each.num for each in api.get_repo_discussions(repository, discussion_status="open")] == [2]


def test_collection_holds_repositories(api, repository):
    collection = api.create_collection("Video models", description="Ours")
    assert api.create_collection("Video models", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, repository, "model", note="The first")
    assert status_of(api.add_collection_item, collection.slug, repository, "model")[0] == 409
    with pytest.raises(RepositoryNotFoundError):
        api.add_collection_item(collection.slug, "me/nothing", "model")
    (item,) = api.get_collection(collection.slug).items
    assert (item.item_id, item.item_type, item.note) == (repository, "model", "The first")
    assert [each.title for each in api.list_collections(owner="me")] == ["Video models"]


# --- large files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1_000, 50_000, 120_001], ids=["whole", "of one part", "in three parts"])
def test_large_file_comes_back_and_is_sent_once(api, hub, repository, tmp_path, size):
    content = os.urandom(size)
    for name in ("w.safetensors", "copy.safetensors", "w.safetensors"):
        api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repository)
    assert hub.uploaded_bytes == {hashlib.sha256(content).hexdigest(): size}
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert len(puts) == -(-size // 50_000)
    assert len(api.list_repo_commits(repository)) == 3, "the third upload changed nothing"
    folder = Path(snapshot_download(repository, endpoint=hub, local_dir=tmp_path / "got"))
    assert (folder / "w.safetensors").read_bytes() == (folder / "copy.safetensors").read_bytes() == content
    assert not api.verify_repo_checksums(repository, local_dir=folder).mismatches


def test_upload_that_was_cut_is_resumed(api, hub, repository, tmp_path):
    """The client tries six times, then gives up; files that arrived are not sent again."""
    contents = {name: os.urandom(40_000) for name in ("a.safetensors", "b.safetensors")}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    first, second = (hashlib.sha256(content).hexdigest() for content in contents.values())
    hub.faults.cut(10_000, path=second, times=6)
    upload = {"repo_id": repository, "folder_path": tmp_path, "allow_patterns": "*.safetensors"}
    with pytest.raises(RuntimeError, match="b.safetensors"):
        api.upload_folder(**upload)
    assert api.list_repo_files(repository) == []
    api.upload_folder(**upload)
    assert api.list_repo_files(repository) == list(contents)
    assert hub.uploaded_bytes == {first: 40_000, second: 40_000 + 6 * 10_000}


def test_one_cut_is_repaired_by_the_client(api, hub, repository, waits):
    content = os.urandom(120_000)
    hub.faults.cut(30_000, path="/2$")
    api.upload_file(path_or_fileobj=content, path_in_repo="w.bin", repo_id=repository)
    assert hub.uploaded_bytes == {hashlib.sha256(content).hexdigest(): 150_000} and len(waits) == 1
    assert [request.status for request in hub.requests if request.method == "PUT"] == [200, 0, 200, 200]


def test_content_that_was_not_announced_is_refused(api, hub, repository):
    oid = hashlib.sha256(b"announced").hexdigest()
    assert get_session().put(f"{hub}/.lfs/{oid}", content=b"other").status_code == 400
    assert get_session().get(f"{hub}/.lfs/{oid}").status_code == 404


def test_part_of_a_file_is_read(api, hub, repository):
    for name in ("w.bin", "w.txt"):
        api.upload_file(path_or_fileobj=bytes(range(100)), path_in_repo=name, repo_id=repository)
        url = f"{hub}/me/model/resolve/main/{name}"
        for wanted, part in {"10-": (10, 100), "10-19": (10, 20), "-5": (95, 100), "90-200": (90, 100)}.items():
            reply = get_session().get(url, headers={"Range": f"bytes={wanted}"})
            assert (reply.status_code, reply.content) == (206, bytes(range(*part))), wanted
        assert get_session().get(url, headers={"Range": "bytes=100-"}).status_code == 416


# --- rights ----------------------------------------------------------------------------------------------------------


def test_tokens_have_different_rights(hub, api, repository):
    put(api, repository, a_txt=b"a")
    assert api.create_repo("lab/model").repo_id == "lab/model"
    anonymous = HfApi(endpoint=hub, token=False)
    for client in (anonymous, HfApi(endpoint=hub, token="hf_read"), HfApi(endpoint=hub, token="hf_other")):
        assert read(client, repository, "a.txt") == "a"
    assert status_of(put, anonymous, repository, b_txt=b"b")[0] == 401
    status, message = status_of(put, HfApi(endpoint=hub, token="hf_read"), repository, b_txt=b"b")
    assert status == 403 and "write token" in message
    status, message = status_of(HfApi(endpoint=hub, token="hf_other").create_repo, "me/theirs")
    assert status == 403 and "under the namespace me" in message
    status, message = status_of(HfApi(endpoint=hub, token="hf_unknown").model_info, repository)
    assert status == 401 and "Invalid credentials in Authorization header" in message
    assert HfApi(endpoint=hub, token="hf_read").whoami()["auth"]["accessToken"]["role"] == "read"
    hub.faults.refuse_token("hf_x")
    assert status_of(api.whoami)[0] == 401


def test_private_repository_is_hidden_from_strangers(hub, api, tmp_path):
    api.create_repo("me/secret", private=True)
    put(api, "me/secret", a_txt=b"a")
    assert api.model_info("me/secret").private and read(api, "me/secret", "a.txt") == "a"
    for token in (False, "hf_other"):
        client = HfApi(endpoint=hub, token=token)
        assert not client.repo_exists("me/secret")
        for name in ("me/secret", "me/nothing"):  # they look the same
            with pytest.raises(RepositoryNotFoundError):
                client.hf_hub_download(name, "a.txt", cache_dir=tmp_path / "theirs")
    api.update_repo_settings("me/secret", private=False)
    assert HfApi(endpoint=hub, token=False).repo_exists("me/secret")
    api.delete_repo("me/secret")
    assert not api.repo_exists("me/secret") and not (hub.folder / "me" / "secret").exists()


def test_repository_that_exists_is_not_created_again(hub, api, repository):
    assert status_of(api.create_repo, repository)[0] == 409
    assert api.create_repo(repository, exist_ok=True) == f"{hub}/me/model"
    assert HfApi(endpoint=hub, token="hf_other").create_repo(repository, exist_ok=True).repo_id == repository
    assert api.create_repo("named").repo_id == "me/named"


@pytest.mark.parametrize("name", ["w.safetensors", "w.txt"])
def test_quota_ends_uploads(api, hub, repository, name):
    hub.quota = 10_000
    put(api, repository, a_txt=b"a" * 6_000)
    options = {"path_or_fileobj": b"b" * 5_000, "path_in_repo": name, "repo_id": repository}
    status, message = status_of(api.upload_file, **options)
    assert status == 403 and "storage limit reached" in message
    hub.quota = None
    api.upload_file(**options)


def test_hub_without_tokens_lets_everybody_write(tmp_path):
    with local_hub(tmp_path / "hub") as hub:
        for token in (False, "hf_x", "local"):
            api = HfApi(endpoint=hub, token=token)
            api.create_repo("anyone/model", exist_ok=True)
            put(api, "anyone/model", a_txt=b"a")
        assert api.whoami()["name"] == "me"


# --- metadata --------------------------------------------------------------------------------------------------------

INDEX = "[{name: m, results: [{task: {type: t}, dataset: {type: d, name: D}, metrics: [{type: acc, value: 1}]}]}]"
VALID = {
    "model": [
        "base_model: me/base",
        "base_model: [gpt2, me/base]\nbase_model_relation: merge",
        "license: [mit, other]\nlanguage: en\ndatasets: [me/clips]\ntags: [video]\npipeline_tag: video-text-to-text",
        f"model-index: {INDEX}",
    ],
    "dataset": [
        "configs: [{config_name: default, data_files: [{split: train, path: a.parquet}]}]\nlicense: cc-by-4.0"
    ],
    "space": ['sdk: gradio\ntitle: Demo\nemoji: 🎬\ncolorFrom: blue\ncolorTo: gray\nsdk_version: "5.1"'],
}
INVALID = {
    "model": {
        "base_model: /home/me/checkpoint": '"base_model" with value "/home/me/checkpoint" is not valid. Use a mod',
        "base_model: .": '"base_model" with value "." is not valid',
        "base_model: ./out": "base_model",
        "base_model: ../out": "base_model",
        "base_model: out/run/last": "base_model",
        "base_model: [me/base, /tmp/x]": '"base_model[1]" with value "/tmp/x"',
        "base_model: 3": "base_model",
        "base_model_relation: child": "adapter, merge, quantized, finetune",
        "datasets: [me/clips, ./clips]": "datasets[1]",
        "license: apache2": '"license" must be one of [apache-2.0, mit',
        "language: English": '"language"',
        "tags: video": '"tags"',
        "tags: [1]": '"tags"',
        "library_name: [a]": '"library_name" must be a string',
        "a: [": "Invalid YAML",
        "model-index: {}": '"model-index"',
        f"model-index: {INDEX.replace('name: D', 'n: D')}": '"model-index[0].results[0].dataset.name" is required',
        f"model-index: {INDEX.replace('value', 'v')}": '"model-index[0].results[0].metrics[0].value" is required',
    },
    "dataset": {
        "size_categories: [tiny]": "size_categories",
        "configs: [{data_files: a.csv}]": '"configs[0].config_name" is required',
        "configs: [{config_name: a, data_files: [{split: train}]}]": '"configs[0].data_files[0].path" is required',
    },
    "space": {
        "title: Demo": '"sdk" is required',
        "sdk: flask": '"sdk" must be one of',
        "sdk: static\ncolorFrom: black": "colorFrom",
        "sdk: static\nemoji: film": "emoji",
        "sdk: gradio\nsdk_version: 5.1": '"sdk_version" must be a string',
    },
}


@pytest.mark.parametrize(("kind", "header"), [(kind, header) for kind in VALID for header in VALID[kind]])
def test_valid_card_is_accepted(hub, kind, header):
    with warnings.catch_warnings(action="error"):
        ModelCard(f"---\n{header}\n---\n", ignore_metadata_errors=True).validate(kind)


@pytest.mark.parametrize(("kind", "header"), [(kind, header) for kind in INVALID for header in INVALID[kind]])
def test_invalid_card_is_refused(hub, monkeypatch, api, kind, header):
    """By the client, which asks before it uploads, and by the Hub, if it is not asked."""
    api.create_repo("me/card", repo_type=kind, space_sdk="static" if kind == "space" else None)
    card = f"---\n{header}\n---\n".encode()
    with pytest.raises(ValueError) as error:
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/card", repo_type=kind)
    assert INVALID[kind][header] in str(error.value)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)
    with pytest.raises(BadRequestError) as error:
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="me/card", repo_type=kind)
    assert INVALID[kind][header] in str(error.value)
    assert api.list_repo_files("me/card", repo_type=kind) == []


@pytest.mark.parametrize(
    ("card", "warning"),
    [(b"---\npipeline_tag: video-guessing\n---\n", "video-guessing"), (b"No metadata", "empty or missing yaml")],
)
def test_unknown_task_and_empty_card_are_warned_of(api, repository, card, warning):
    with pytest.warns(UserWarning, match=warning):
        api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id=repository)
    assert api.list_repo_files(repository) == ["README.md"]


def test_card_gives_the_facts_of_the_repository(api, repository):
    header = "license: mit\nbase_model: me/base\nbase_model_relation: adapter\npipeline_tag: video-text-to-text"
    api.upload_file(path_or_fileobj=f"---\n{header}\n---\n".encode(), path_in_repo="README.md", repo_id=repository)
    info = api.model_info(repository)
    assert info.card_data.license == "mit" and info.pipeline_tag == "video-text-to-text"
    assert {"base_model:adapter:me/base", "license:mit", "video-text-to-text"} <= set(info.tags)


def test_results_must_be_readable(api, repository):
    upload = {"path_in_repo": ".eval_results/videoqa.yaml", "repo_id": repository}
    for wrong in (b"- value: 3", b"just text", b"- [", b"- {dataset: {id: me/videoqa}, value: 3}"):
        with pytest.raises(BadRequestError, match="eval_results/videoqa.yaml"):
            api.upload_file(path_or_fileobj=wrong, **upload)
    api.upload_file(path_or_fileobj=b"- {dataset: {id: me/videoqa, task_id: default}, value: 3}", **upload)
    (result,) = api.model_info(repository, expand=["evalResults"]).eval_results
    assert (result.dataset_id, result.value) == ("me/videoqa", 3)


def test_space_has_a_kit_and_runs(api):
    api.create_repo("me/demo", repo_type="space", space_sdk="gradio")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="app.py", repo_id="me/demo", repo_type="space")
    info = api.space_info("me/demo")
    assert (info.sdk, info.runtime.stage, api.get_space_runtime("me/demo").hardware) == (
        "gradio",
        "RUNNING",
        "cpu-basic",
    )


# --- misbehaviour ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_client_waits_and_tries_again(api, hub, repository, waits, status):
    hub.faults.answer(status, path="preupload", method="POST", times=2, retry_after=7)
    put(api, repository, a_txt=b"a")
    assert waits == [8, 8]  # the client adds a second
    statuses = [request.status for request in hub.requests if "preupload" in request.path]
    assert statuses == [status, status, 200]


def test_commit_is_not_tried_again(api, hub, repository):
    hub.faults.answer(429, path="/commit/", retry_after=40)
    status, message = status_of(put, api, repository, a_txt=b"a")
    assert status == 429 and "Retry after 40 seconds" in message
    put(api, repository, a_txt=b"a")


def test_connections_are_dropped_and_replies_delayed(api, hub, repository, waits):
    hub.faults.drop(path="/preupload/")
    hub.faults.delay(0.3, path="/commit/")
    started = time.monotonic()
    put(api, repository, a_txt=b"a")
    assert time.monotonic() - started > 0.3 and waits == [1]
    hub.faults.drop(path="/refs", times=9)
    hub.faults.clear()
    api.list_repo_refs(repository)


def test_client_that_wants_xet_is_told_to_turn_it_off(hub, repository):
    reply = get_session().get(f"{hub}/api/models/me/model/xet-write-token/main")
    assert reply.status_code == 400 and "HF_HUB_DISABLE_XET=1" in reply.headers["X-Error-Message"]


# --- other clients ---------------------------------------------------------------------------------------------------


def test_command_and_datasets_use_the_hub(hub, tmp_path):
    environment = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "home")}
    program = "import datasets as d\nd.Dataset.from_dict({'a': [1, 2]}).push_to_hub('me/rows')\n"
    program += "print(d.load_dataset('me/rows', split='train')['a'][:])"
    done = forked.run("-c", program, **environment)
    assert done.stdout.splitlines()[-1] == "[1, 2]", done.stderr
    (tmp_path / "w.bin").write_bytes(b"\0" * 200_000)
    hf = ["from huggingface_hub.cli.hf import main; main()", "upload", "me/new", tmp_path / "w.bin"]
    done = forked.run("-c", *hf, **environment)
    assert done.returncode == 0 and (hub.folder / "me" / "new" / "w.bin").stat().st_size == 200_000, done.stderr


def test_hub_is_started_by_hand(tmp_path):
    port, support = free_port(), Path(__file__).parents[1] / "support"
    command = [sys.executable, "-m", "local_hub", tmp_path, "--port", port]
    with subprocess.Popen(command, cwd=support, stdout=subprocess.PIPE, text=True) as process:
        threading.Timer(60, process.kill).start()
        assert process.stdout.readline().split()[0] == f"HF_ENDPOINT=http://127.0.0.1:{port}"
        assert HfApi(endpoint=f"http://127.0.0.1:{port}", token="hf_x").whoami()["name"] == "me"
        process.terminate()
