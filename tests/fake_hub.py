"""A hub on loopback that takes what `create_repo`, `create_branch` and `create_commit` send."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.loopback import serving

TOKEN, READING_TOKEN = "hf_thetokenthatmaywrite", "hf_thetokenthatmayread"


@dataclass
class FakeHub:
    """What the hub has, and how it is to misbehave.

    Attributes:
        repositories: private or not, by id.
        commits: message, branch and files of each, in order.
        troubles: what the next commits meet: a status, or "hang" for an answer that does not come in time.
        always: a status that every commit meets.
    """

    url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    troubles: list[int | str] = field(default_factory=list)
    always: int | None = None

    def reset(self) -> None:
        """Forget everything, and behave."""
        vars(self).update(vars(FakeHub(self.url)))

    @property
    def files(self) -> dict[str, bytes]:
        """Of all commits, the last one first seen."""
        return {name: content for _, _, files in self.commits for name, content in files.items()}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def reply(self, status: int, content: object) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def is_refused(self) -> bool:
            given = self.headers.get("Authorization")
            may = [f"Bearer {TOKEN}"] + ([f"Bearer {READING_TOKEN}"] if self.command == "GET" else [])
            refused = given not in may or (given != may[0] and self.path.endswith("/auth-check/write"))
            if refused:
                # a server that shows what it got must not make us show it
                status = 403 if given == f"Bearer {READING_TOKEN}" else 401
                self.reply(status, {"error": f"Invalid credentials {given}"})
            return refused

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.is_refused():
                return
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
                known = name in hub.repositories
                hub.repositories.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
                self.reply(409 if known else 200, {"url": f"{hub.url}/{name}"})
            elif "/branch/" in self.path:
                hub.branches.append(self.path.rsplit("/", 1)[1])
                self.reply(200, {})
            elif "/preupload/" in self.path:
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                self.reply(200, {"files": files})
            elif "/commit/" in self.path:
                self.commit(body)
            elif self.path == "/api/validate-yaml":
                self.reply(200, {"errors": [], "warnings": []})
            else:
                self.reply(404, {"error": self.path})

        def do_GET(self) -> None:
            if not self.is_refused():
                self.reply(200, {"id": "lab/pico", "sha": "0" * 40})

        def commit(self, body: bytes) -> None:
            trouble = hub.troubles.pop(0) if hub.troubles else hub.always
            if trouble == "hang":
                time.sleep(3)
                self.close_connection = True
                return
            if isinstance(trouble, int):
                self.reply(trouble, {"error": "out of order"})
                return
            lines = [json.loads(line) for line in body.splitlines()]
            files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines[1:]}
            hub.commits.append((lines[0]["value"]["summary"], self.path.rsplit("/", 1)[1], files))
            self.reply(200, {"success": True, "commitUrl": f"{hub.url}/lab/pico/commit/1", "commitOid": "1" * 40})

    with serving(Handler) as hub.url:
        yield hub
