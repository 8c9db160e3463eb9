"""Errors of the Hub in one line, and whether trying again may help."""

import errno
from collections.abc import Sequence
from pathlib import Path

AGAIN = "run it again, finished files are kept"
PASSING = (408, 429)  # statuses that are not the request's fault, as are those from 500 on


def explain(
    error: Exception,
    repo: str,
    revision: str | None,
    missing: Sequence[str],
    *,
    folder: Path | None = None,
    again: str = AGAIN,
) -> str:
    """One line for a failure of `huggingface_hub`: what was found and what to do.

    missing: the files that were to be fetched. folder: where to, the Hub cache by default. again: what continues.
    """
    from huggingface_hub import constants, errors

    error = _cause(error)
    line = one_line(error)
    found = f"the local cache lacks {few(missing) or 'it'}"
    match error:
        case errors.HFValidationError():
            return f"{repo!r} cannot be a repository on the Hub: expected owner/name"
        case errors.GatedRepoError():
            page = f"{constants.ENDPOINT}/{repo}"
            return f"{repo} is gated: accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN"
        case errors.RepositoryNotFoundError():
            return f"no model {repo} on the Hub, or it is private: check the name, `hf auth login` or set HF_TOKEN"
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}: expected a branch, a tag or a full commit hash"
        case errors.OfflineModeIsEnabled():
            return f"cannot fetch {repo}: {found} and HF_HUB_OFFLINE is set; unset it, or give a local folder"
        case errors.HfHubHTTPError():
            status = error.response.status_code
            advice = "check HF_TOKEN or `hf auth login`" if status in (401, 403) else "try again later"
            return f"cannot fetch {repo}: {found} and the Hub answered {status}; {advice}"
    where = folder or constants.HF_HUB_CACHE
    if is_full_disk(error):
        return f"the disk is full while fetching {repo} into {where}: free space or set HF_HOME, then run it again"
    if isinstance(error, OSError) and error.errno and error.filename:
        return f"cannot write {repo} into the Hub cache ({line}): check its permissions, or set HF_HOME"
    return f"cannot fetch {repo}: {found} and the connection failed ({line}); {again}"


def is_passing(error: Exception) -> bool:
    """Whether the same request may well succeed a little later: a lost connection, a Hub in trouble."""
    from huggingface_hub import errors

    error = _cause(error)
    match error:
        case errors.HfHubHTTPError():
            return error.response.status_code in PASSING or error.response.status_code >= 500
        case errors.OfflineModeIsEnabled() | ValueError() | TypeError():
            return False
        case OSError() if error.filename:
            return False
    return not is_full_disk(error)


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def few(files: Sequence[str]) -> str:
    """The first names of some, and how many more there are."""
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _cause(error: Exception) -> Exception:
    """What happened, where the library's advice to look at the connection hides it."""
    from huggingface_hub import errors

    hidden = isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception)
    return error.__cause__ if hidden else error  # type: ignore[return-value]


def is_full_disk(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
