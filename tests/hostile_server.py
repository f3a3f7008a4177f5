"""A web server on 127.0.0.1 that has files and git repositories, and misbehaves as it is told, until it is healed."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

BACKEND = "/usr/lib/git-core/git-http-backend"


@dataclass
class Request:
    """What was asked, when, and what was answered."""

    path: str
    headers: dict[str, str]
    begun: float
    ended: float = 0.0
    status: int = 0


@dataclass
class Site:
    """What a server has and does.

    Attributes:
        files: bytes by path; of a list, each request gets the next.
        ills: how it misbehaves, by path; for a repository by ``/ORG/REPO.git``. One in parentheses is its own cure.
        repositories: a folder of bare repositories.
        requests: all that was asked.
        raw: whole answers, for the ill ``raw INDEX``.
        work_s: how long an answer takes.
    """

    files: dict[str, bytes | list[bytes]] = field(default_factory=dict)
    ills: dict[str, str] = field(default_factory=dict)
    repositories: Path = Path("/nonexistent")
    requests: list[Request] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    work_s: float = 0.0
    address: str = ""
    released: threading.Event = field(default_factory=threading.Event)

    def heal(self) -> None:
        """Behave from now on."""
        self.ills.clear()

    def asked(self) -> set[str]:
        """Paths that were asked for."""
        return {request.path for request in self.requests}

    def together(self) -> int:
        """The most requests at the same time."""
        edges = [(request.begun, 1) for request in self.requests] + [(r.ended, -1) for r in self.requests]
        level = most = 0
        for _, step in sorted(edges):
            level += step
            most = max(most, level)
        return most


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_args: object) -> None:
        """Nothing on standard error."""

    def send_response(self, code: int, message: str | None = None) -> None:
        """Also noted."""
        self.request_noted.status = code
        super().send_response(code, message)

    def do_GET(self) -> None:
        """A file, or a part of git's conversation."""
        path = unquote(self.path.partition("?")[0])
        self.request_noted = Request(path, dict(self.headers.items()), time.monotonic())
        self.site.requests.append(self.request_noted)
        try:
            time.sleep(self.site.work_s)
            name = path[: path.index(".git/") + 4] if ".git/" in path else path
            ill = self.site.ills.get(name, "")
            if ill.startswith("("):
                del self.site.ills[name]
            self.misbehave(ill.strip("()"), path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            self.request_noted.ended = time.monotonic()

    do_POST = do_GET

    def misbehave(self, ill: str, path: str) -> None:
        """What the ill asks for, or a good answer."""
        body = self.site.files.get(path, b"x" * 4096)
        if isinstance(body, list):
            body = body.pop(0) if len(body) > 1 else body[0]
        kind, _, argument = ill.partition(" ")
        if kind.isdigit():
            after = {"Retry-After": argument} if argument else {}
            login = {"WWW-Authenticate": 'Basic realm="x"'} if kind == "401" else {}
            self.answer(int(kind), b"no", **after, **login)
        elif kind == "raw":
            self.wfile.write(self.site.raw[int(argument)])
            self.close_connection = True
        elif kind == "reset":
            self.close_connection = True
        elif kind == "silent":
            self.site.released.wait(60)
            self.close_connection = True
        elif kind == "stall":
            self.head(len(body), sha256(body).hexdigest())
            self.wfile.write(body[: len(body) // 2])
            self.site.released.wait(60)
            self.close_connection = True
        elif kind == "hesitate":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.site.released.wait(0.2):
                self.wfile.write(b"0")
            self.close_connection = True
        elif kind == "drip":
            self.head(len(body), "")
            for byte in body:
                self.wfile.write(bytes([byte]))
                if self.site.released.wait(0.2):
                    break
            self.close_connection = True
        elif kind == "cut" and ".git/" not in path:
            start = self.start(body)
            self.head(len(body) - start, sha256(body).hexdigest(), start, len(body))
            self.wfile.write(body[start : start + (len(body) - start) // 2])
            self.close_connection = True
        elif kind == "unsized":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif kind == "wrong":
            self.answer(200, body[::-1] + b"!")
        elif kind == "loop":
            self.answer(302, b"", Location=path)
        elif kind == "elsewhere":
            self.answer(302, b"", Location=argument)
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            while not self.site.released.is_set():
                self.wfile.write(b"0" * 65536)
        elif kind == "long":
            self.head(1 << 40, "")
            self.site.released.wait(60)
        elif ".git/" in path and path not in self.site.files:
            self.git(cut=kind == "cut")
        elif path in self.site.files:
            start = self.start(body)
            self.head(len(body) - start, sha256(body).hexdigest(), start, len(body))
            self.wfile.write(body[start:])
        else:
            self.answer(404, b"no such file")

    def start(self, body: bytes) -> int:
        """Where the range begins that is asked for, if it is of these bytes."""
        asked = self.headers.get("Range", "")
        tag = f'"{sha256(body).hexdigest()}"'
        same = self.headers.get("If-Range", tag) == tag
        return int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0

    def head(self, length: int, tag: str, start: int = 0, whole: int = 0) -> None:
        """Status and headers of a file."""
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(length))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        if tag:
            self.send_header("ETag", f'"{tag}"')
        self.end_headers()

    def answer(self, code: int, body: bytes, **headers: str) -> None:
        """A short answer."""
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def git(self, *, cut: bool) -> None:
        """What git's own server says."""
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length", 0))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.site.repositories),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "PATH_INFO": unquote(path),
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(length),
            "REMOTE_ADDR": "127.0.0.1",
        }
        body = self.rfile.read(length)
        done = subprocess.run([BACKEND], env=environment, input=body, capture_output=True, check=False).stdout
        head, _, content = done.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        code = int(headers.pop("Status", "200 OK").split()[0])
        if cut and self.command == "POST":
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Content-Type", headers["Content-Type"])
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.answer(code, content, **headers)


class Server(ThreadingHTTPServer):
    """One thread a connection; whoever is answering when it closes is left behind."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, *_args: object) -> None:
        """A client that went away is no news."""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """A server, for as long as it is needed; its address is in the site."""
    handler = type("SiteHandler", (Handler,), {"site": site})
    with Server(("127.0.0.1", 0), handler) as server:
        site.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield site
        finally:
            site.released.set()
            server.shutdown()
            thread.join(10)
