"""A converted model goes to the Hub, through `huggingface_hub`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.hub_errors import is_full_disk, one_line
from ..errors import HubError


def check_upload(repo: str) -> None:
    """HubError if `owner/name` cannot be uploaded to, as far as can be told before there is anything to upload."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        owner, _ = repo.split("/")
    except (HFValidationError, ValueError):
        raise HubError(f"{repo!r} cannot be a repository on the Hub: expected owner/name") from None
    if get_token() is None:
        raise HubError(f"cannot upload to {repo}: not logged in: run `hf auth login` or set HF_TOKEN")
    try:
        user = HfApi().whoami()
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise HubError(f"cannot upload to {repo}: the Hub refuses the token: run `hf auth login`") from error
        raise HubError(f"cannot upload to {repo}: the Hub answered {status}: try again later") from error
    except Exception as error:
        raise HubError(f"cannot upload to {repo}: the connection failed ({one_line(error)}): try again") from error
    owners = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
    if owner.casefold() not in [name.casefold() for name in owners]:
        raise HubError(f"cannot upload to {repo}: logged in as {owners[0]}: expected {' or '.join(owners)} as owner")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"cannot upload to {repo}: the token may only read: run `hf auth login` with one that may write")


def upload(folder: Path, repo: str) -> str:
    """Upload a folder's files as one repository of the Hub, made if it is not there; returns its address.

    What the Hub holds already is not sent again. The folder stays. Raises HubError, which says how to go on.
    """
    from huggingface_hub import HfApi

    again = f"the model is whole in {folder}: upload it with `hf upload {repo} {folder} .`"
    try:
        with _bars_on_terminals():
            address = str(HfApi().create_repo(repo, exist_ok=True))
            HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload MLX files")
    except Exception as error:
        raise HubError(f"cannot upload to {repo} ({_what_happened(error)}); {again}") from error
    return address


def _what_happened(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return f"the Hub answered {cause.response.status_code}"
        cause = cause.__cause__
    return "the disk is full" if is_full_disk(error) else one_line(error)


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """The library's progress bars, only where someone watches them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    is_silenced = not are_progress_bars_disabled() and not (sys.stderr is not None and sys.stderr.isatty())
    if is_silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_silenced:
            enable_progress_bars()
