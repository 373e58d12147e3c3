"""Uploading a folder to the Hub in one commit, with one clear error for each way in which it can fail."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitInfo, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import httpx

ATTEMPTS = 5  # at a commit, if others are made at the same time
CHANGED = 412  # the status of a reply to a commit whose parent is no longer the newest
Result = TypeVar("Result")
HUB_ERRORS = (HfHubHTTPError, LocalTokenNotFoundError, httpx.TransportError)
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
RESUME = "run the same command again: files that were uploaded are not uploaded twice"
# What to do, by the status of the Hub's reply
ADVICE = {
    401: LOGIN,
    403: "your token may not do this: it cannot write there, or the quota is used up",
    409: "the name is taken, or another commit was being made: choose another name, or run this again",
    CHANGED: "the repository has changed in the meantime: run this again",
    413: "the Hub takes no file of this size",
    429: f"the Hub limits how often you may ask: wait, and {RESUME}",
}


def upload(
    folder: Path,
    repo_id: str,
    repo_type: str = "model",
    commit_message: str = "Upload with pllava",
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
) -> CommitInfo:
    """
    Upload all files of a folder, in one commit if they are few and small; the Hub client resumes an upload of large
    files that was cut when it is called again. The repository and the branch are created if they do not exist.

    Args:
        private: Create the repository as a private one.
        revision: The branch.
        create_pr: Open a pull request.
        parent_commit: The commit that the repository must be at.

    Raises:
        OSError: if the Hub cannot be reached or refuses: the message says what to do.
        ValueError: if `private` is asked for and the repository is public.
    """
    api = HfApi()
    with explaining_errors(repo_id):
        if not (create_pr and api.repo_exists(repo_id, repo_type=repo_type)):  # which may be another user's
            repo_id = create_repository(repo_id, repo_type, private)
        elif private:
            _check_private(api, repo_id, repo_type)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
        return api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )


def create_repository(repo_id: str, repo_type: str = "model", private: bool = False) -> str:
    """Create a repository if there is none, and return its full id; a `ValueError` if `private` and it is public."""
    api = HfApi()
    sdk = "gradio" if repo_type == "space" else None
    repo_id = api.create_repo(
        repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk
    ).repo_id
    if private:
        _check_private(api, repo_id, repo_type)
    return repo_id


def _check_private(api: HfApi, repo_id: str, repo_type: str) -> None:
    if not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or leave --private out")


def commit_on_newest(commit: Callable[[], Result]) -> Result:
    """Call a function that reads what is newest on the Hub and commits to it; anew if another commit came between."""
    for _ in range(ATTEMPTS - 1):
        try:
            return commit()
        except OSError as error:
            reply = error if isinstance(error, HfHubHTTPError) else error.__cause__
            if not (isinstance(reply, HfHubHTTPError) and reply.response.status_code == CHANGED):
                raise
    return commit()


@contextmanager
def explaining_errors(repo_id: str) -> Iterator[None]:
    """Replace errors of the Hub client by an `OSError` that says, in one line, what failed and what to do."""
    try:
        yield
    except RuntimeError as error:  # from the upload of a file
        if not isinstance(error.__cause__, HUB_ERRORS):
            raise
        raise OSError(f"{repo_id}: {' '.join(str(error).split())} {_explain(error.__cause__)}") from error
    except HUB_ERRORS as error:
        raise OSError(f"{repo_id}: {_explain(error)}") from error


def _explain(error: BaseException) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token for the Hub: {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no such repository, or your token cannot see it: {LOGIN}"
    if isinstance(error, httpx.TransportError):
        return f"{constants.ENDPOINT} cannot be reached ({error}): {RESUME}"
    status, reason = error.response.status_code, " ".join((error.server_message or str(error)).split())
    advice = ADVICE.get(status) or (RESUME if status >= 500 else "change what the Hub names, and run this again")
    return f"the Hub replied {status} ({reason}): {advice}"
