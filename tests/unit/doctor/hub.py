"""A hub for tests: as much of Hugging Face's HTTP API as its client needs to read a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    models: dict[str, Path]
    gated: set[str]
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, what = "/".join(parts[2:4]), parts[4:]
        else:
            name, what = "/".join(parts[:2]), parts[2:]
        if name not in self.models:
            self._refuse(404, "RepoNotFound")
        elif "nowhere" in what:
            self._refuse(404, "RevisionNotFound")
        elif parts[0] == "api" and what[:1] == ["tree"]:
            self._json([self._entry(file) for file in self._files(name)])
        elif parts[0] == "api":
            siblings = [{"rfilename": file.name} for file in self._files(name)]
            self._json({"id": name, "sha": SHA, "siblings": siblings, "tags": [], "private": False})
        elif name in self.gated:
            self._refuse(403, "GatedRepo")
        else:
            file = self.models[name] / what[-1]
            self._send(200, file.read_bytes()) if file.is_file() else self._refuse(
                404, "EntryNotFound"
            )

    def _files(self, name: str) -> list[Path]:
        return sorted(self.models[name].iterdir())

    def _entry(self, file: Path) -> dict[str, object]:
        size = file.stat().st_size
        return {"type": "file", "path": file.name, "size": size, "oid": _digest(file.read_bytes())}

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode())

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"refused: {code}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{_digest(body)}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def hub(models: dict[str, Path], gated: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Its URL, and the list of what it was asked."""
    asked: list[str] = []
    handler = type("Hub", (_Hub,), {"models": models, "gated": gated, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
