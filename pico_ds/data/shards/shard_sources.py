"""Sources of shards: list the shards of a corpus and fetch a shard to this machine."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

from pico_ds.config import DataConfig
from pico_ds.data.keyed_random import digest64
from pico_ds.data.text.documents import data_files
from pico_ds.errors import DataError
from pico_ds.hub_requests import http_error, request_with_retries


class ShardFiles(Protocol):
    """An ordered list of parquet files.

    Attributes:
        names: names of the files, used in messages.
        identity: equal for equal files, regardless of where they are.
    """

    names: list[str]
    identity: dict[str, str | int]

    def fetch(self, number: int, directory: Path) -> Path:
        """Return the path of a shard's file on this machine.

        Args:
            number: position of the shard in `names`.
            directory: empty directory for a download; the caller removes it.

        Raises:
            DataError: the file cannot be fetched.
        """


class LocalShards:
    """The files of data.paths, in sorted order."""

    def __init__(self, config: DataConfig) -> None:
        """
        Raises:
            DataError: a path or glob matches no file, or a file does not end in .parquet.
        """
        self._paths = data_files(config)
        for path in self._paths:
            if path.suffix.lower() != ".parquet":
                raise DataError(
                    f"data.paths: {path} ends in {path.suffix!r}; token shards (data.source: shards) must be .parquet; "
                    "convert text with scripts/prepare_data.py, or set data.source: files"
                )
        self.names = [str(path) for path in self._paths]
        sizes = ",".join(f"{path.name}:{path.stat().st_size}" for path in self._paths)
        self.identity: dict[str, str | int] = {"shards": len(self.names), "files": f"{digest64(sizes):016x}"}

    def fetch(self, number: int, directory: Path) -> Path:
        """Return the path of the original file; nothing is copied."""
        return self._paths[number]


class HubShards:
    """Files of a Hugging Face hub dataset at one commit."""

    def __init__(self, config: DataConfig) -> None:
        """Request the list of files from the hub.

        Raises:
            DataError: the dataset does not exist, is not accessible or has no matching file, or the hub cannot be
                reached.
        """
        from huggingface_hub import HfApi

        assert config.dataset is not None
        self._dataset, api = config.dataset, HfApi()
        with _hub_errors_as_data_errors(self._dataset, config.revision):
            found = request_with_retries(lambda: api.dataset_info(self._dataset, revision=config.revision))
        file_names = sorted(file.rfilename for file in found.siblings or [])
        self._files = [name for name in file_names if fnmatch(name, config.dataset_files)]
        if not self._files:
            shown = ", ".join(file_names[:5]) or "no files"
            raise DataError(
                f"data.dataset_files: no file of {self._dataset} matches {config.dataset_files!r}; it has {shown}"
                f"{', ...' if len(file_names) > 5 else ''}"
            )
        self._commit = str(found.sha)
        self.names = [f"{self._dataset}/{name}" for name in self._files]
        self.identity: dict[str, str | int] = {
            "dataset": self._dataset,
            "revision": self._commit,
            "shards": len(self.names),
        }

    def fetch(self, number: int, directory: Path) -> Path:
        """Download the file of a shard. A retry continues an interrupted download.

        Raises:
            DataError: the file cannot be downloaded.
        """
        from huggingface_hub import hf_hub_download

        with _hub_errors_as_data_errors(self._dataset, self._commit):
            return Path(
                request_with_retries(
                    lambda: hf_hub_download(
                        self._dataset,
                        self._files[number],
                        repo_type="dataset",
                        revision=self._commit,
                        local_dir=directory,
                    )
                )
            )


class _hub_errors_as_data_errors:  # noqa: N801  lowercase because it is used as a context manager
    """Context manager that turns hub errors into `DataError`."""

    def __init__(self, dataset: str, revision: str) -> None:
        self._dataset, self._revision = dataset, revision

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"data.dataset: {self._dataset}"
        if isinstance(error, GatedRepoError):
            advice = "is gated: request access on its page, then set $HF_TOKEN or run `hf auth login`"
        elif isinstance(error, RepositoryNotFoundError):
            advice = "is not a dataset on the hub, or is private: check the name, or set $HF_TOKEN"
        elif isinstance(error, RevisionNotFoundError):
            advice = f"has no revision {self._revision!r}: check data.revision"
        elif isinstance(error, HFValidationError):
            advice = f"is not a valid dataset name ({error}): use <user or organisation>/<name>"
        elif isinstance(error, (http_error(), OSError)):
            cause = " ".join(str(error.__cause__ or error).split())
            advice = f"cannot be read from the hub: {cause}. Check the network and the disk, then run the command again"
        else:
            return
        raise DataError(f"{where} {advice}") from error
