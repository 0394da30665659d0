"""A stand-in of the Hugging Face hub: repositories in memory, by the addresses that clients use."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Files = dict[str, bytes]

_RESOLVE = re.compile(r"/(\w+/[\w.-]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/models/(\w+/[\w.-]+)/(preupload|commit|branch|tree|revision)/([^/]+)")


class Hub:
    """`repositories[name]` holds the files of the newest commit; `requests` what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Files] = {}
        self.requests: list[str] = []
        self.address = ""

    def commit_id(self, name: str) -> str:
        files = self.repositories[name]
        digest = hashlib.sha1(name.encode(), usedforsecurity=False)
        for path in sorted(files):
            digest.update(path.encode() + files[path])
        return digest.hexdigest()

    def answer(self, path: str, body: bytes) -> Any:
        """JSON data for a POST; None where there is no such address."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return {"url": f"{self.address}/{name}", "id": name, "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        found = _API.fullmatch(path)
        if found is None or found[1] not in self.repositories:
            return None
        if found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            return {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
            }
        if found[2] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.repositories[found[1]][line["value"]["path"]] = content
            oid = self.commit_id(found[1])
            url = f"{self.address}/{found[1]}/commit/{oid}"
            return {"success": True, "commitUrl": url, "commitOid": oid}
        return {}

    def listing(self, path: str) -> Any:
        """JSON data for a GET below /api; None where there is no such address."""
        path = path.partition("?")[0]
        found = _API.match(path)
        name = found[1] if found else path.removeprefix("/api/models/")
        if name not in self.repositories:
            return None
        files = self.repositories[name]
        if found and found[2] == "tree":
            return [
                {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                for file, content in files.items()
            ]
        siblings = [{"rfilename": file} for file in files]
        return {"_id": "0", "id": name, "sha": self.commit_id(name), "siblings": siblings}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._send_json(self.hub.answer(self.path.partition("?")[0], body))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        found = _RESOLVE.fullmatch(self.path.partition("?")[0])
        if found is None:
            self._send_json(self.hub.listing(self.path))
            return
        name, _, file = found.groups()
        files = self.hub.repositories.get(name)
        if files is None or file not in files:
            missing = "RepoNotFound" if files is None else "EntryNotFound"
            self._send(404, b"", {"X-Error-Code": missing})
            return
        etag = hashlib.sha1(files[file], usedforsecurity=False).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": self.hub.commit_id(name)}
        self._send(200, files[file], headers)

    def _send_json(self, document: Any) -> None:
        if document is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            content = json.dumps(document).encode()
            self._send(200, content, {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serves a hub on a free port inside the block; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        yield hub.address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
