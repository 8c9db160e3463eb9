"""`upload`: a converted model goes to the Hub with a model card."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoint.hub_errors import is_full_disk, one_line
from ..errors import HubError
from ..terminal import is_terminal
from .model_card import read_metadata, write_model_card
from .source import Source


def check_name(repo: str) -> None:
    """HubError for what cannot be `owner/name` on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        _, _ = repo.split("/")
    except (HFValidationError, ValueError):
        raise HubError(f"{repo!r} cannot be a repository on the Hub: expected owner/name") from None


def check_upload(repo: str) -> None:
    """HubError if `owner/name` cannot be uploaded to, as far as can be told before there is anything to upload."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_name(repo)
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
    owner = repo.partition("/")[0]
    owners = [user["name"], *(org["name"] for org in user.get("orgs", ()))]
    if owner.casefold() not in [name.casefold() for name in owners]:
        raise HubError(f"cannot upload to {repo}: logged in as {owners[0]}: expected {' or '.join(owners)} as owner")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"cannot upload to {repo}: the token may only read: run `hf auth login` with one that may write")


def upload(
    folder: str | Path,
    repo: str,
    *,
    source: Source | None = None,
    recipe: str | None = None,
    calibration: str | None = None,
    adapters: Sequence[str] = (),
    quality: Mapping[str, Any] | None = None,
) -> str:
    """Upload a converted model with a card; see `afmoe_mlx.upload`. calibration: how it was done, in words.

    adapters: what those are called that were merged.
    """
    check_name(repo)
    folder = Path(os.path.expanduser(folder))
    card = source.card() if source else None
    write_model_card(
        folder,
        repo,
        source=source.origin if source and source.commit else None,
        commit=source.commit if source else None,
        inherited=read_metadata(card) if card else None,
        recipe=recipe,
        calibration=calibration,
        adapters=adapters,
        quality=quality,
    )
    return _send(folder, repo)


def _send(folder: Path, repo: str) -> str:
    """Upload a folder's files; the repository's address."""
    from huggingface_hub import HfApi

    again = (
        f"the model is whole in {folder}: upload it with `hf upload {shlex.quote(repo)} {shlex.quote(str(folder))} .`"
    )
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
            status = cause.response.status_code
            return f"the Hub answered {status}" + (": run `hf auth login`" if status == 401 else "")
        cause = cause.__cause__
    return "the disk is full" if is_full_disk(error) else one_line(error)


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """The library's progress bars, only where someone watches them."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    is_silenced = not are_progress_bars_disabled() and not is_terminal(sys.stderr)
    if is_silenced:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_silenced:
            enable_progress_bars()
