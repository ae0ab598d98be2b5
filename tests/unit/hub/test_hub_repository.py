"""Commits to a hub that fails in various ways."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from pico_ds import hub_requests
from pico_ds.config import ConfigError, HubConfig
from pico_ds.errors import HubError
from pico_ds.hub.hub_repository import HubRepository
from tests.fake_model_hub import READ_TOKEN, TOKEN, FakeHub, fake_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(hub_requests, "RETRY_SECONDS", (0.01, 0.01, 0.01))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # the library also retries failed requests, with its own waits
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr(hub_requests, "TIMEOUT_SECONDS", 1.0)
    with fake_hub() as found:
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        yield found
    huggingface_hub.set_client_factory(_http.default_client_factory)


def make(**settings: object) -> HubRepository:
    return HubRepository(HubConfig.model_validate({"repo_id": "lab/pico", **settings}))


def test_repository_and_branch_are_created_once(hub: FakeHub) -> None:
    make(revision="run-3", private=False).prepare()
    make().prepare()
    assert hub.repositories == {"lab/pico": False}
    assert hub.branches == ["run-3"]
    make(repo_id="lab/other").prepare()
    assert hub.repositories["lab/other"] is True


def test_commit_uploads_its_files(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    make(revision="run-3").commit({"x/a.bin": tmp_path / "a.bin", "README.md": b"---\ntags: [a]\n---\n"}, "step 4")
    assert hub.commits == [("step 4", "run-3", {"x/a.bin": bytes(range(256)), "README.md": b"---\ntags: [a]\n---\n"})]


@pytest.mark.parametrize("failures", [[500], [503, 500, 502], ["hang"]])
def test_failed_commit_is_retried(hub: FakeHub, failures: list[int | str]) -> None:
    hub.failures = list(failures)
    make().commit({"a": b"1"}, "step 4")
    assert [files for _, _, files in hub.commits] == [{"a": b"1"}]
    assert not hub.failures


def test_commit_error_is_reported_after_all_retries(hub: FakeHub) -> None:
    hub.default_failure = 500
    with pytest.raises(HubError, match=r"lab/pico: .*500"):
        make().commit({"a": b"1"}, "step 4")
    hub.default_failure = None
    make().commit({"a": b"1"}, "step 5")
    assert len(hub.commits) == 1


def test_invalid_token_fails_without_retries_and_is_not_printed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "RETRY_SECONDS", (100.0,))
    for token, status in (("hf_wrong", 401), (READ_TOKEN, 403)):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(ConfigError, match=rf"checkpointing\.hub\.repo_id: lab/pico: .*{status}") as denied:
            make().prepare()
        with pytest.raises(HubError, match=str(status)) as unpushed:
            make().commit({"a": b"1"}, "step 4")
        assert token not in str(denied.value) + str(unpushed.value)


def test_missing_token_and_bad_name_are_reported(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Repo id must"):
        make(repo_id="a b").prepare()
    monkeypatch.setenv("HF_TOKEN", "hf_thétoken")
    with pytest.raises(ConfigError, match="the token contains characters that are not ASCII") as denied:
        make().prepare()
    assert "hf_th" not in str(denied.value)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(ConfigError, match=r"needs a token with write access, and there is none; set \$HF_TOKEN"):
        make().prepare()


def test_unreachable_hub_is_reported(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"checkpointing\.hub\.repo_id: lab/pico: .*refused"):
        make().prepare()
