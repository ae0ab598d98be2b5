"""A model repository of the hub: made once, then one commit after another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pico_ds.config import ConfigError, HubConfig
from pico_ds.data.hub_requests import http_error, request_with_retries, set_timeout
from pico_ds.errors import HubError


class HubRepository:
    """`checkpointing.hub.repo_id`, with the token of `$HF_TOKEN` or `hf auth login`, which no message ever shows."""

    def __init__(self, settings: HubConfig) -> None:
        """
        Args:
            settings: whose `repo_id` is not null.
        """
        from huggingface_hub import HfApi, get_token

        assert settings.repo_id is not None
        set_timeout()
        self.repo_id, self._private, self._revision = settings.repo_id, settings.private, settings.revision
        self._api, self._token = HfApi(), get_token()

    def prepare(self) -> None:
        """Make the repository and its branch where they are not there yet.

        Raises:
            ConfigError: no token, one that may not write there, or a hub that cannot be reached.
        """
        if self._token is None:
            raise ConfigError(
                f"checkpointing.hub.repo_id: {self.repo_id} needs a token that may write: set $HF_TOKEN, or run "
                "`hf auth login`; or write null"
            )
        if not self._token.isascii():
            raise ConfigError(
                "checkpointing.hub.repo_id: the token has characters that no token has; copy it anew into $HF_TOKEN, "
                "or run `hf auth login`"
            )
        try:
            self._attempt(self._api.create_repo, repo_id=self.repo_id, private=self._private, exist_ok=True)
            # one that was there is taken by a token that may read it alone, too
            self._attempt(self._api.auth_check, repo_id=self.repo_id, write=True)
            if self._revision is not None:
                self._attempt(self._api.create_branch, repo_id=self.repo_id, branch=self._revision, exist_ok=True)
        except HubError as error:
            raise ConfigError(
                f"checkpointing.hub.repo_id: {error}. Check the name, the network, and that the token may write there; "
                "or write null"
            ) from error

    def commit(self, files: Mapping[str, Path | bytes], message: str) -> None:
        """Add or replace files in one commit; what did not change is not sent.

        Args:
            files: by path in the repository; a file of the disk, or its content.

        Raises:
            HubError: refused, or still failing at the last attempt. Nothing of it is in the repository then.
        """
        from huggingface_hub import CommitOperationAdd

        self._attempt(
            lambda: self._api.create_commit(
                repo_id=self.repo_id,
                # made anew in every attempt, for one that failed leaves marks on them
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
        """A message on one line, fit to be shown."""
        message = " ".join(message.split())
        return message.replace(self._token, "<token>") if self._token else message
