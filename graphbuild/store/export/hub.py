"""A folder on the Hub of Hugging Face: who may push, and pushing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from graphbuild.errors import GraphError, Unreachable

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_push(repo: str) -> None:
    """Refuse a push that the Hub would refuse, before there is anything to push.

    Args:
        repo: ORG/NAME.

    Raises:
        GraphError: another name, nobody is logged in, or somebody who is not of ORG.
        Unreachable: the Hub does not answer.
    """
    if not _NAME.fullmatch(repo):
        raise GraphError(f"push: {repo!r}; allowed: ORG/NAME, such as my-name/my-set")
    organisation = repo.partition("/")[0]
    with _asking(repo):
        me: dict[str, Any] = _hub().whoami()
    names = [me["name"], *(each["name"] for each in me.get("orgs", ()))]
    if organisation not in names:
        raise GraphError(
            f"push: {repo}: you are {me['name']} on the Hub; allowed: one of {', '.join(names)}, then /NAME"
        )


def push(
    folder: Path, repo: str, kind: Literal["model", "dataset"], *, only: Sequence[str] = (), without: Sequence[str] = ()
) -> str:  # fmt: skip
    """Upload a folder. A new repository is private; in an old one files of these names are replaced.

    Args:
        only, without: patterns of files; all without any.

    Returns:
        The address of the repository.

    Raises:
        GraphError: nobody is logged in.
        Unreachable: it was refused, or stopped on the way; the same call sends what is missing.
    """
    hub = _hub()
    with _asking(repo):
        address = str(hub.create_repo(repo, repo_type=kind, private=True, exist_ok=True))
        hub.upload_folder(
            folder_path=folder, repo_id=repo, repo_type=kind, allow_patterns=list(only) or None,
            ignore_patterns=list(without) or None, commit_message="Pushed by graphbuild",
        )  # fmt: skip
    return address


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="graphbuild")


@contextmanager
def _asking(repo: str) -> Iterator[None]:
    """Whatever the Hub's library raises, in a line."""
    from huggingface_hub import errors

    stopped: Any = (errors.HfHubHTTPError.__mro__[1], OSError, RuntimeError)  # of its http client, network included
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise GraphError(f"push: {repo}: nobody is logged in to the Hub: hf auth login, or set HF_TOKEN") from error
    except stopped as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        raise Unreachable(f"push: {repo}: {str(cause).strip().splitlines()[0]}") from error
