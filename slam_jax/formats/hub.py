"""Downloads from the Hugging Face hub, with all that can go wrong said in one line each."""

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants, errors

from slam_jax.base.errors import InputError


def fetch(name: str, revision: str, patterns: Sequence[str]) -> Path:
    """A model's files in the local cache, downloaded if they are not there yet.

    Args:
        name: "owner/name".
        revision: branch, tag or commit; "" is the main branch.
        patterns: of the files to fetch.

    Returns:
        The snapshot's folder, whose name is the commit.

    Raises:
        InputError: no such model or revision, or neither network nor copy.
    """
    what = f"{name} at revision {revision}" if revision else name
    options = {"revision": revision or None, "allow_patterns": list(patterns)}
    # Asked once: of a commit the library would try to get the list of files for half a minute.
    silence = _silence(name, revision)
    options["local_files_only"] = silence is not None
    try:
        return Path(huggingface_hub.snapshot_download(name, **options))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{what}: the hub gives it to those who accept its terms; accept them at "
            f"https://huggingface.co/{name} and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{what}: no such folder, and the hub has no such model; check the name, or run "
            "`hf auth login` if the model is private"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{what}: the hub has the model but no such revision") from error
    except errors.LocalEntryNotFoundError as error:
        cause = first_line(silence or error.__cause__ or error)
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else cause
        raise InputError(
            f"{what}: no such folder, not (or not wholly) in the cache {constants.HF_HUB_CACHE}, "
            f"and not to be had from the hub ({why}); connect once, or give a local folder"
        ) from error
    # What is raised when a download breaks differs between the hub's HTTP libraries and versions.
    except Exception as error:
        raise InputError(
            f"{what}: download failed ({first_line(error)}); run again to continue it"
        ) from error


def _silence(name: str, revision: str) -> Exception | None:
    """Why the hub does not answer; None: it does, if only to refuse."""
    try:
        huggingface_hub.HfApi().model_info(name, revision=revision or "main", timeout=10)
    except errors.HfHubHTTPError:
        return None
    except Exception as error:  # as above
        return error
    return None


def file_names(name: str, revision: str) -> list[str]:
    """The files that a model has on the hub, or in the cache where the hub does not say.

    Args:
        name, revision: as for `fetch`.

    Raises:
        InputError: as `fetch`.
    """
    try:
        # The library's list of files tries for 25 s where there is no network.
        info = huggingface_hub.HfApi().model_info(name, revision=revision or "main")
        return [sibling.rfilename for sibling in info.siblings or []]
    except Exception:  # `fetch` knows what is in the cache, and which error is which
        snapshot = fetch(name, revision, [])
    files = (path for path in snapshot.rglob("*") if path.is_file())
    return sorted(path.relative_to(snapshot).as_posix() for path in files)


def first_line(error: BaseException) -> str:
    """What an exception says, or its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
