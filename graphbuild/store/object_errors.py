"""What an object store answered, as an error that says what to do."""

from __future__ import annotations

import re

from graphbuild.errors import GraphError, Unreachable

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_SECRET = re.compile(r"\?[^\s\"')]+")  # Azure signs in the query of a URL
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY",
}
_EXPIRED = ("ExpiredToken", "TokenRefreshRequired", "RequestExpired", "InvalidToken")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NONE = ("169.254.169.254", "metadata", "Received None from session.get_credentials")
"""Where credentials are looked for last."""

_REFUSED = "the credentials are wrong, have expired or lack a right, or this machine's clock is wrong"
"""Azure does not say which."""


class NoAnswer(Unreachable):
    """Whether the store did what it was asked for is not known."""


def explained(error: Exception, where: str, *, asked: bool = True) -> GraphError | Unreachable:
    """The error to raise for one of obstore's, without what may hold a secret.

    Args:
        where: the URL of what was asked for.
        asked: whether there was a client that could ask.
    """
    text, name = str(error), type(error).__name__
    code, status = _first(_CODE, text), _first(_STATUS, text)
    said, plain = " ".join(filter(None, (status, code))), _SECRET.sub("?...", text.partition("\n")[0])[:300]
    credentials = _credentials(where)
    answers: list[tuple[bool, type[GraphError | Unreachable], str]] = [
        (code in _NO_BUCKET, GraphError, f"there is no such bucket ({said}); make it, or correct the URL or endpoint"),
        (status == "416", GraphError, "ends before what was asked for; see graphbuild verify"),
        (name == "NotSupportedError", GraphError, f"the store cannot do this ({said or plain})"),
        (code in _EXPIRED, Unreachable, f"the credentials have expired ({said}); renew them: {credentials}"),
        (code == "RequestTimeTooSkewed", Unreachable, f"the clocks here and of the store differ ({said}); set them"),
        (status in ("401", "403"), Unreachable, f"access denied ({said}); {_REFUSED}; {credentials}"),
        (status is None and any(word in text for word in _NONE), Unreachable, f"no credentials; {credentials}"),
        (not asked, GraphError, f"{plain}; {credentials}"),
        (status is None, NoAnswer, f"the store does not answer ({plain}); check the network and the endpoint"),
        (True, Unreachable, f"the store answers {said}; it may be too busy, or the endpoint may be wrong"),
    ]
    kind, why = next((kind, why) for applies, kind, why in answers if applies)
    return kind(f"{where}: {why}")


def _credentials(where: str) -> str:
    scheme = where.partition(":")[0]
    variables = f"for {scheme}:// {_VARIABLES.get(scheme, '')}"
    return f"credentials come from the environment, {variables}; the same on every machine of a cluster"


def _first(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None
