"""A small model hub on this machine: real HTTP, the part of the protocol that fetching uses."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Hub:
    """Serves folders as repositories; every request is noted.

    Attributes:
        repositories: `owner/name` and revision (a branch) -> the folder that it is.
        requests: Method and path of every request, in order.
    """

    repositories: Mapping[tuple[str, str], Path]
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    @property
    def fetched(self) -> set[str]:
        """Names of the files that were downloaded, not just asked about."""
        return {
            path.split("/resolve/")[1].partition("/")[2]
            for method, path in self.requests
            if method == "GET" and "/resolve/" in path
        }

    def find(self, repository: str, revision: str) -> tuple[Path, str] | None:
        for (name, branch), folder in self.repositories.items():
            commit = hashlib.sha1(f"{name}@{branch}".encode()).hexdigest()
            if name == repository and revision in (branch, commit):
                return folder, commit
        return None


@contextmanager
def serve(repositories: Mapping[tuple[str, str], Path]) -> Iterator[Hub]:
    """Run a hub while the block lasts."""
    hub = Hub(repositories)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            hub.requests.append((self.command, path))
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                what = parts[4] if len(parts) > 5 else "revision"
                self.information(what, "/".join(parts[2:4]), parts[5] if parts[5:] else "main")
            elif parts[2:3] == ["resolve"]:
                self.file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
            else:
                self.refuse("EntryNotFound")

        def information(self, what: str, repository: str, revision: str) -> None:
            found = hub.find(repository, revision)
            if found is None:
                known = any(name == repository for name, _ in hub.repositories)
                self.refuse("RevisionNotFound" if known else "RepoNotFound")
                return
            folder, commit = found
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            names = [str(file.relative_to(folder)) for file in files]
            body: object = {
                "id": repository,
                "sha": commit,
                "siblings": [{"rfilename": name} for name in names],
            }
            if what == "tree":
                body = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": name}
                    for name, file in zip(names, files, strict=True)
                ]
            self.send(json.dumps(body).encode(), {"Content-Type": "application/json"})

        def file(self, repository: str, revision: str, name: str) -> None:
            found = hub.find(repository, revision)
            if found is None or not (found[0] / name).is_file():
                self.refuse("EntryNotFound")
                return
            content = (found[0] / name).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.send(content, {"ETag": f'"{etag}"', "X-Repo-Commit": found[1]})

        def refuse(self, code: str) -> None:
            self.send(b"", {"X-Error-Code": code, "X-Error-Message": code}, status=404)

        def send(self, content: bytes, headers: Mapping[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
