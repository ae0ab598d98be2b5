"""A local server that answers `create_repo`, `create_branch` and `create_commit` of huggingface_hub."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.http_server import serving

TOKEN, READ_TOKEN = "hf_thetokenthatmaywrite", "hf_thetokenthatmayread"


@dataclass
class FakeHub:
    """The content of the hub, and the failures that it simulates.

    Attributes:
        repositories: whether each repository is private, by id.
        commits: message, branch and files of each commit, in order.
        failures: what happens to the next commits: a status, or "hang" for no answer in time.
        default_failure: the status of every commit after `failures`.
    """

    url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    failures: list[int | str] = field(default_factory=list)
    default_failure: int | None = None

    def reset(self) -> None:
        """Delete all content and simulate no more failures."""
        vars(self).update(vars(FakeHub(self.url)))

    @property
    def files(self) -> dict[str, bytes]:
        """The content of every file by name, as of its last commit."""
        return {name: content for _, _, files in self.commits for name, content in files.items()}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print no log."""

        def reply(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def is_denied(self) -> bool:
            """Whether the token does not permit the request. If so, the error has been sent."""
            token = self.headers.get("Authorization")
            permitted = [f"Bearer {TOKEN}"] + ([f"Bearer {READ_TOKEN}"] if self.command == "GET" else [])
            denied = token not in permitted or (token != permitted[0] and self.path.endswith("/auth-check/write"))
            if denied:
                # the answer contains the token, so that tests notice if pico_ds prints it
                status = 403 if token == f"Bearer {READ_TOKEN}" else 401
                self.reply(status, {"error": f"Invalid credentials {token}"})
            return denied

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.is_denied():
                return
            if self.path == "/api/repos/create":
                request = json.loads(body)
                name = "/".join(filter(None, (request.get("organization"), request["name"])))
                exists = name in hub.repositories
                hub.repositories.setdefault(name, request.get("private") or request.get("visibility") == "private")
                self.reply(409 if exists else 200, {"url": f"{hub.url}/{name}"})
            elif "/branch/" in self.path:
                hub.branches.append(self.path.rsplit("/", 1)[1])
                self.reply(200, {})
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.reply(200, {"files": files})
            elif "/commit/" in self.path:
                self.commit(body)
            elif self.path == "/api/validate-yaml":
                self.reply(200, {"errors": [], "warnings": []})
            else:
                self.reply(404, {"error": self.path})

        def do_GET(self) -> None:
            if not self.is_denied():
                self.reply(200, {"id": "lab/pico", "sha": "0" * 40})

        def commit(self, body: bytes) -> None:
            failure = hub.failures.pop(0) if hub.failures else hub.default_failure
            if failure == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            if isinstance(failure, int):
                self.reply(failure, {"error": "simulated failure"})
                return
            lines = [json.loads(line) for line in body.splitlines()]
            files = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines[1:]}
            hub.commits.append((lines[0]["value"]["summary"], self.path.rsplit("/", 1)[1], files))
            self.reply(200, {"success": True, "commitUrl": f"{hub.url}/lab/pico/commit/1", "commitOid": "1" * 40})

    with serving(Handler) as hub.url:
        yield hub
