"""Who may see and change what."""

from dataclasses import dataclass

from .replies import HubError
from .repository import Repository

EVERYWHERE = "*"


@dataclass(frozen=True)
class Token:
    """A token of `user`, which may write to the user's own namespace and to those of `organisations`."""

    user: str
    organisations: tuple[str, ...] = ()
    read_only: bool = False

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.user or bool({namespace, EVERYWHERE} & set(self.organisations))


OPEN = Token("me", organisations=(EVERYWHERE,))  # of all requests to a Hub that has no list of tokens


def find_token(tokens: dict[str, Token] | None, refused: set[str], authorization: str | None) -> Token | None:
    """Return whose the request is; None if it has no token."""
    secret = (authorization or "").removeprefix("Bearer ")
    if secret and (secret in refused or (tokens is not None and secret not in tokens)):
        raise HubError(401, "Invalid credentials in Authorization header")
    if tokens is None:
        return OPEN
    return tokens[secret] if secret else None


def require_token(token: Token | None) -> Token:
    if token is None:
        raise HubError(401, "Invalid username or password.")
    return token


def require_visible(token: Token | None, repository: Repository) -> None:
    """Raise what the Hub replies for a repository that does not exist, which does not tell strangers which do."""
    if repository.private and not (token and token.belongs_to(repository.namespace)):
        raise missing(token)


def missing(token: Token | None) -> HubError:
    return HubError(404 if token else 401, "Repository not found", "RepoNotFound")


def require_write(token: Token | None, namespace: str) -> Token:
    token = require_token(token)
    if token.read_only:
        raise HubError(403, "You must use a write token to upload to a repository.")
    if not token.belongs_to(namespace):
        raise HubError(403, f"You don't have the required permissions to write under the namespace {namespace}.")
    return token


def require_commit(token: Token | None, repository: Repository, ref: str) -> Token:
    """The author of a pull request may add commits to it; else one must own the repository."""
    discussion = repository.discussion_of(ref)
    if token and discussion and discussion["author"]["name"] == token.user and not token.read_only:
        return token
    return require_write(token, repository.namespace)


def require_pull_request(token: Token | None) -> Token:
    """Anyone who can see a repository and may write anything may open a pull request."""
    token = require_token(token)
    if token.read_only:
        raise HubError(403, "You must use a write token to open a pull request.")
    return token
