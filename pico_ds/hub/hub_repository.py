"""Creates a model repository on the hub and commits files to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, HubConfig
from pico_ds.errors import HubError
from pico_ds.hub_requests import http_error, request_with_retries, set_timeout


class HubRepository:
    """The repository `checkpointing.hub.repo_id`.

    The token comes from `$HF_TOKEN` or `hf auth login`. No message contains it.
    """

    def __init__(self, settings: HubConfig) -> None:
        """
        Args:
            settings: settings whose `repo_id` is not null.
        """
        from huggingface_hub import HfApi, get_token

        assert settings.repo_id is not None
        set_timeout()
        self.repo_id, self._private, self._revision = settings.repo_id, settings.private, settings.revision
        self._api, self._token = HfApi(), get_token()

    def prepare(self) -> None:
        """Create the repository and its branch if they do not exist.

        Raises:
            ConfigError: there is no token, the token may not write to the repository, or the hub cannot be reached.
        """
        if self._token is None:
            raise ConfigError(
                f"checkpointing.hub.repo_id: {self.repo_id} needs a token with write access, and there is none; set "
                "$HF_TOKEN, run `hf auth login`, or set the key to null"
            )
        if not self._token.isascii():
            raise ConfigError(
                "checkpointing.hub.repo_id: the token contains characters that are not ASCII; copy it into $HF_TOKEN "
                "again, or run `hf auth login`"
            )
        try:
            self._attempt(self._api.create_repo, repo_id=self.repo_id, private=self._private, exist_ok=True)
            # create_repo accepts an existing repository even if the token can only read it
            self._attempt(self._api.auth_check, repo_id=self.repo_id, write=True)
            if self._revision is not None:
                self._attempt(self._api.create_branch, repo_id=self.repo_id, branch=self._revision, exist_ok=True)
        except HubError as error:
            raise ConfigError(
                f"checkpointing.hub.repo_id: {error}. Check the name, the network, and the write access of the token; "
                "or set the key to null"
            ) from error

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> None:
        """Add or replace files in one commit. Unchanged files are not sent.

        Args:
            files: path in the repository -> local file, or its content.

        Raises:
            HubError: the hub rejects the commit, or the last attempt fails. The repository is then unchanged.
        """
        from huggingface_hub import CommitOperationAdd

        self._attempt(
            lambda: self._api.create_commit(
                repo_id=self.repo_id,
                # create the operations in each attempt, because a failed attempt changes them
                operations=[CommitOperationAdd(name, content) for name, content in files.items()],
                commit_message=message,
                revision=self._revision,
            )
        )

    def _attempt(self, request: Any, **arguments: Any) -> None:
        from huggingface_hub.errors import HFValidationError

        try:
            request_with_retries(lambda: request(**arguments))
        except HFValidationError as error:
            raise HubError(str(error)) from error
        except (http_error(), OSError) as error:
            raise HubError(self.without_token(f"{self.repo_id}: {error}")) from None

    def without_token(self, message: str) -> str:
        """Return a message as one line, with the token replaced."""
        message = " ".join(message.split())
        return message.replace(self._token, "<token>") if self._token else message
