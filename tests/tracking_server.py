"""A W&B server in sixty lines: enough for the real online client, on loopback."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StubServer(ThreadingHTTPServer):
    """Keeps what clients send: `runs` by id from UpsertBucket, `rows` of their history."""

    daemon_threads = True

    def __init__(self, failing: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.failing = failing  # requests whose path contains this get a 500
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet when a client hangs up: it does so when its process ends."""

    def answer(self, path: str, body: Any) -> dict[str, Any]:
        if path == "/graphql":
            return {"data": self._graphql(body["query"], body.get("variables") or {})}
        if path.endswith("/file_stream"):
            run = path.split("/")[-2]
            files = body.get("files") or {}
            for line in files.get("wandb-history.jsonl", {}).get("content", []):
                self.rows.setdefault(run, []).append(json.loads(line))
            for line in files.get("wandb-summary.json", {}).get("content", []):
                self.summaries[run] = json.loads(line)
        return {}

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "UpsertBucket" in query:
            known = self.runs.setdefault(variables["name"], {})
            known.update({k: v for k, v in variables.items() if v is not None})
            project = {"name": variables.get("project"), "entity": {"name": "stub"}}
            bucket = {"id": "1", "name": variables["name"], "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "CreateRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/up/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        if "Viewer" in query:
            return {"viewer": {"id": "1", "entity": "stub", "username": "stub", "flags": "{}"}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        fails = bool(self.server.failing) and self.server.failing in self.path
        is_json = body[:1] == b"{" and self.path.startswith(("/graphql", "/files/"))
        data = {} if fails else self.server.answer(self.path, json.loads(body) if is_json else {})
        content = json.dumps(data).encode()
        self.send_response(500 if fails else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@contextmanager
def stub_server(failing: str = "") -> Iterator[StubServer]:
    """A running server; `failing="/"` answers everything with 500."""
    with StubServer(failing) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
