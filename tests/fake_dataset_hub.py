"""A local server that answers `dataset_info` and `hf_hub_download` of huggingface_hub for one dataset."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote

from tests.http_server import serving

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class FakeDatasetHub:
    """The files of the hub, and the failures that it simulates.

    Attributes:
        files: content by path.
        failures: by path, what happens to the next downloads: a status, "cut" (half of the file) or "slow".
        denial: answers every request with this status and error code of the hub, e.g. (403, "GatedRepo").
        downloads: paths of the files that were sent in whole or in part, in order.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[int | str]] = field(default_factory=dict)
    denial: tuple[int, str] | None = None
    commit: str = COMMIT
    downloads: list[str] = field(default_factory=list)

    def add(self, directory: Path) -> None:
        for path in directory.rglob("*.parquet"):
            self.files[path.relative_to(directory).as_posix()] = path.read_bytes()


@contextmanager
def fake_dataset_hub(name: str = "lab/tokens") -> Iterator[FakeDatasetHub]:
    hub = FakeDatasetHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Print no log."""

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.denial is not None:
                status, code = hub.denial
                self.reply(status, json.dumps({"error": code}).encode(), X_Error_Code=code, X_Error_Message=code)
            elif self.path.split("?")[0].startswith(f"/api/datasets/{name}"):
                siblings = [{"rfilename": path} for path in [*hub.files, "README.md"]]
                content = {"id": name, "sha": hub.commit, "siblings": siblings}
                self.reply(200, json.dumps(content).encode(), Content_Type="application/json")
            elif self.path.startswith(f"/datasets/{name}/resolve/{hub.commit}/"):
                self.send_file(unquote(self.path.split(f"{hub.commit}/", 1)[1]))
            else:
                self.reply(404, b"{}", X_Error_Code="RepoNotFound")

        def send_file(self, path: str) -> None:
            content = hub.files[path]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": hub.commit}
            if self.command == "HEAD":
                self.send_response(200)
                for header, value in headers.items():
                    self.send_header(header.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                return
            failure = hub.failures.get(path, []).pop(0) if hub.failures.get(path) else None
            if isinstance(failure, int):
                self.reply(failure, b"simulated failure")
                return
            hub.downloads.append(path)
            byte_range = self.headers.get("Range")
            first = int(byte_range.removeprefix("bytes=").split("-")[0]) if byte_range else 0
            self.send_response(206 if byte_range else 200)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            if byte_range:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            body = content[first:]
            if failure == "cut":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            for start in range(0, len(body), 1024):
                self.wfile.write(body[start : start + 1024])
                if failure == "slow":
                    time.sleep(0.02)

    with serving(Handler) as hub.url:
        yield hub
