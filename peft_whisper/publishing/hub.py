"""One repository of the Hub brought to hold exactly what is to be published, in one commit."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from peft_whisper.errors import PublishError
from peft_whisper.publishing.belongs import EXPORTED, FACTS, Kind, Outgoing, belongs, kind_of
from peft_whisper.publishing.scan import findings

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

TIMEOUT_S = 120.0  # without an answer, or a byte taken; the Hub's client would wait for ever
MADE_BY_HUB = ".gitattributes"
AGAIN = "Give the same command again: it goes on from what is there."
NO_TOKEN = (
    "no token for the Hub: log in once with `hf auth login`, or set HF_TOKEN. It is read from "
    "there alone, never from a recipe or an argument."
)


@dataclass(frozen=True)
class Wanted:
    """What a repository is to hold."""

    kind: Kind
    files: Sequence[Outgoing]


@dataclass(frozen=True)
class Remote:
    """A repository as it was looked at: its head's commit, and its files."""

    commit: str
    private: bool
    files: dict[str, RepoFile]

    def lacks(self, wanted: Wanted) -> list[Outgoing]:
        """Files that it does not hold bit for bit."""
        return [one for one in wanted.files if not _same(one, self.files.get(one.path))]

    def stale(self, wanted: Wanted) -> list[str]:
        """Its files of an earlier push that no longer belong."""
        kept = {one.path for one in wanted.files}
        return [path for path in self.files if path not in kept and belongs(wanted.kind, path)]

    def holds(self, wanted: Wanted) -> bool:
        return not self.lacks(wanted) and not self.stale(wanted)


@dataclass(frozen=True)
class Published:
    """What was done: the commit that holds it, and what that changed."""

    commit: str
    sent: list[Outgoing]
    deleted: list[str]
    notes: list[str]


def publish(wanted: Wanted, repo: str, public: bool, message: str) -> Published:
    """Bring `repo` to hold what is `wanted`, and no other file of an earlier push.

    A new repository is private unless `public`. Raises PublishError, with what the repository then
    holds, where that did not work.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        api = client()
        with told(repo, f"Nothing was sent. {AGAIN}"):
            api.whoami()
            found = look(api, repo) or made(api, repo, public)
        check(found, repo, wanted.kind, public)
        sent, deleted = found.lacks(wanted), found.stale(wanted)
        commit = send(api, repo, found, wanted, message) if sent or deleted else found.commit
    notes = [str(one.message) for one in said if "README" in str(one.message)]
    if found.private and public:
        notes.append(f"{repo} was private and stays so; its settings on the Hub change that")
    return Published(commit, sent, deleted, notes)


def client() -> HfApi:
    """The Hub's own client, with a limit to its patience; raises PublishError without a token."""
    from huggingface_hub import HfApi, get_token

    settle_client()
    if not get_token():
        raise PublishError(NO_TOKEN)
    return HfApi()


@cache
def settle_client() -> None:
    """Set what all of the Hub's client does in this process: its patience, and what it prints."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import disable_progress_bars, logging
    from huggingface_hub.utils._http import default_client_factory

    def patient() -> Any:
        session = default_client_factory()
        session.timeout = TIMEOUT_S
        return session

    set_client_factory(patient)
    logging.set_verbosity_error()  # it would print addresses that are signed
    if not sys.stderr.isatty():
        disable_progress_bars()


def look(api: HfApi, repo: str, commit: str | None = None) -> Remote | None:
    """The repository at its head, or at a commit; None where there is none that we may see."""
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        info = api.model_info(repo, revision=commit)
    except RepositoryNotFoundError:
        return None
    assert info.sha is not None
    tree = api.list_repo_tree(repo, recursive=True, revision=info.sha)
    files = {one.path: one for one in tree if isinstance(one, RepoFile)}
    return Remote(info.sha, bool(info.private), files)


def made(api: HfApi, repo: str, public: bool) -> Remote:
    """A new repository, private unless told."""
    api.create_repo(repo, private=not public, exist_ok=True)
    found = look(api, repo)
    if found is None:
        raise PublishError(
            f"{repo} can't be seen with this token, and is not free: it belongs to somebody else. "
            "Give a name under your own."
        )
    return found


def check(found: Remote, repo: str, kind: Kind, public: bool) -> None:
    """Raise PublishError where a push would show what is private, or overwrite something else."""
    names = [path for path in found.files if path != MADE_BY_HUB]
    if not found.private and not public:
        raise PublishError(
            f"{repo} is public, so all of this would be: add --public to say so, or give a new "
            "name. Nothing was sent."
        )
    there = kind_of([name for name in names if "/" not in name])
    if names and (not {FACTS, EXPORTED} & set(names) or there != kind):
        holds = f"a{'n' * (there.name[0] in 'aeiou')} {there.name}" if there else "other files"
        raise PublishError(
            f"{repo} holds {holds} already ({', '.join(names[:3])}), and this is "
            f"a{'n' * (kind.name[0] in 'aeiou')} {kind.name}: give each its own repository. "
            "Nothing was sent."
        )
    if ".gitignore" in names:
        raise PublishError(
            f"{repo} has a .gitignore, by which the Hub leaves out files in silence: delete it "
            "there. Nothing was sent."
        )


def send(
    api: HfApi,
    repo: str,
    found: Remote,
    wanted: Wanted,
    message: str,
) -> str:
    """Send one commit on top of what was `found`, read it back, and return it."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = [
        *(CommitOperationAdd(one.path, _content(one)) for one in found.lacks(wanted)),
        *(CommitOperationDelete(path) for path in found.stale(wanted)),
    ]
    try:
        with told(repo):
            done = api.create_commit(
                repo, operations, commit_message=message, parent_commit=found.commit
            ).oid
    except PublishError as error:
        return arrived(api, repo, found, wanted, error)
    with told(repo, f"All was sent, as commit {done[:12]}, but not read back. {AGAIN}"):
        back = look(api, repo, done)
    if back is None or not back.holds(wanted):
        raise PublishError(
            f"{repo} holds other bytes at commit {done[:12]} than were sent. {AGAIN}"
        )
    return done


def arrived(api: HfApi, repo: str, found: Remote, wanted: Wanted, error: PublishError) -> str:
    """The commit, where only the Hub's answer to it was lost; else raises what is there now."""
    try:
        with told(repo):
            now = look(api, repo)
    except PublishError:
        raise PublishError(f"{error} What {repo} holds now could not be asked. {AGAIN}") from error
    if now is not None and now.holds(wanted):
        return now.commit
    if now is not None and now.commit == found.commit:
        raise PublishError(f"{error} {repo} is as it was. {AGAIN}") from error
    raise PublishError(
        f"{error} Somebody else changed {repo} meanwhile, and nothing was sent: look at it, then "
        "give the command again."
    ) from error


@contextmanager
def told(repo: str, then: str = "") -> Iterator[None]:
    """Turn what the Hub's client raises into PublishError; `then` says what is there now."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PublishError("HF_HUB_OFFLINE is set, so the Hub is not asked: unset it.") from error
    except Exception as error:  # what is none of theirs goes on as it is
        cause = _cause(error)
        if isinstance(cause, HfHubHTTPError):
            said = _refusal(cause, repo)
        elif isinstance(cause, ValueError):
            said = f"the Hub's answer could not be read ({_clean(str(cause))})."
        elif isinstance(cause, OSError) or _of_the_network(cause):
            said = f"the Hub could not be reached, or did not answer ({type(cause).__name__})."
        else:
            raise
        raise PublishError(f"{said} {then}".rstrip()) from error


def _cause(error: BaseException) -> BaseException:
    """Of an error and what led to it, the first that the Hub or the network raised."""
    from huggingface_hub.errors import HfHubHTTPError

    one: BaseException | None = error
    while one is not None:
        if isinstance(one, HfHubHTTPError) or _of_the_network(one):
            return one
        one = one.__cause__
    return error


def _of_the_network(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0].startswith("httpx")


REFUSALS = {  # by HTTP status
    401: "the Hub does not know this token; log in again with `hf auth login`, or renew HF_TOKEN.",
    403: "this token may not write to {repo}: it needs the right to write, and {owner} to be you "
    "or an organisation of yours.",
    404: "{repo} can't be seen with this token.",
    409: "the name {repo} is taken.",
    412: "{repo} has changed since it was looked at.",
    413: "the Hub finds this too large.",
    429: "the Hub asks to wait: too many requests. Try again in some minutes.",
}


def _refusal(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    owner = repo.partition("/")[0]
    if status in REFUSALS:
        return REFUSALS[status].format(repo=repo, owner=owner)
    told_by = _clean(error.server_message or "")
    return f"the Hub answered {status}{f' ({told_by})' if told_by else ''}."


def _clean(text: str) -> str:
    """A server's words on one line, short, and with nothing in them that looks secret."""
    line = " ".join(text.split())[:200]
    return "" if next(findings("said", line.encode()), None) else line


def _same(one: Outgoing, there: RepoFile | None) -> bool:
    """Whether the Hub holds a file bit for bit: by SHA-256, or git's SHA-1 of the small ones."""
    if there is None or there.size != one.size:
        return False
    return there.lfs.sha256 == one.sha256 if there.lfs else there.blob_id == one.blob


def _content(one: Outgoing) -> str | bytes:
    return one.source if isinstance(one.source, bytes) else str(one.source)
