"""A hub on this machine: what huggingface_hub asks for, with every misbehaviour on demand."""

import contextlib
import hashlib
import json
import re
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 2  # entries of a tree that are listed at once


def commit_of(number):
    return hashlib.sha1(f"commit {number}".encode()).hexdigest()


class HubServer:
    """Dataset repositories, each a list of commits; main is the last one.

    Attributes:
        repositories: by name, a list of {path: bytes}, a commit each.
        faults: by path, what is done to the next requests of it, one after the other.
        log: (method, path, Range, Authorization, status) of every request.
        loose: paths that lie in git itself, without a sha256.
    """

    def __init__(self):
        self.repositories, self.faults, self.log, self.loose = {}, {}, [], set()
        self.release = threading.Event()
        self.handler = type("Handler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.files = self.endpoint.replace("127.0.0.1", "localhost")  # bytes lie with another host, as the hub's do
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def fault(self, path, *kinds):
        """kinds: a status, ``(429, seconds)``, ``cut N``, ``stall N``, ``wrong``, ``longer``, ``shorter``, ``slow``."""
        self.faults[path] = deque(kinds)

    def bodies(self):
        """Requests for files."""
        return [entry for entry in self.log if "/resolve/" in entry[1]]

    def close(self):
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def note(self, status):
        asked = (self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"), status)
        self.hub.log.append(asked)

    def send(self, status, body=b"", **headers):
        self.note(status)
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.wfile.write(body)

    def send_json(self, value, **headers):
        self.send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def next_fault(self, name):
        queue = self.hub.faults.get(name)
        return queue.popleft() if queue else None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = urlsplit(self.path)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", parts.path):
            self.revision(match[1], unquote(match[2]))
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/(\w+)", parts.path):
            self.tree(match[1], match[2], parse_qs(parts.query))
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/(\w+)/(.+)", parts.path):
            self.redirect(match[1], match[2], unquote(match[3]))
        elif match := re.fullmatch(r"/store/([^/]+/[^/]+)/(\w+)/(.+)", parts.path):
            self.body(match[1], match[2], unquote(match[3]))
        else:
            self.send(404 if parts.path != "/" else 200)

    def failed(self, name):
        kind = self.next_fault(name)
        if isinstance(kind, tuple):
            self.send(kind[0], Retry_After=kind[1])
        elif isinstance(kind, int):
            self.send(kind)
        else:
            return kind or ""
        return None

    def commit(self, repository, commit):
        for number, files in enumerate(self.hub.repositories.get(repository, [])):
            if commit_of(number) == commit:
                return files
        return None

    def revision(self, repository, revision):
        if (self.failed("revision")) is None:
            return
        known = self.hub.repositories.get(repository)
        if known is None:
            self.send(401, X_Error_Message="Invalid username or password.")
        elif revision != "main" and self.commit(repository, revision) is None:
            self.send(404, X_Error_Code="RevisionNotFound")
        else:
            sha = commit_of(len(known) - 1) if revision == "main" else revision
            self.send_json({"id": repository, "sha": sha})

    def tree(self, repository, commit, query):
        if (self.failed("tree")) is None:
            return
        files, start = sorted(self.commit(repository, commit).items()), int(query.get("cursor", ["0"])[0])
        entries = [{"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}] if not start else []
        for path, data in files[start : start + PAGE]:
            oid = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            entry = {"type": "file", "path": path, "size": len(data), "oid": oid}
            if path not in self.hub.loose:
                entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entries.append(entry)
        more = {}
        if start + PAGE < len(files):
            address = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={start + PAGE}"
            more["Link"] = f'<{address}>; rel="next"'
        self.send_json(entries, **more)

    def redirect(self, repository, commit, path):
        data = (self.commit(repository, commit) or {}).get(path)
        if data is None:
            self.send(404, X_Error_Code="EntryNotFound")
            return
        etag = hashlib.sha256(data).hexdigest()
        self.send(
            302,
            Location=f"{self.hub.files}/store/{repository}/{commit}/{path}?X-Amz-Signature=secret",
            X_Repo_Commit=commit,
            X_Linked_Size=len(data),
            X_Linked_ETag=f'"{etag}"',
        )

    def body(self, repository, commit, path):
        kind = self.failed(path)
        if kind is None:
            return
        data = self.commit(repository, commit)[path]
        if kind == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if kind == "longer":
            data += b"more"
        if kind == "shorter":
            data = data[:-4]
        start, status, headers = 0, 200, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            if start >= len(data):
                self.send(416, Content_Range=f"bytes */{len(data)}")
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        data = data[start:]
        word, _, amount = kind.partition(" ")
        if word not in ("cut", "stall", "slow"):
            self.send(status, data, Accept_Ranges="bytes", **headers)
            return
        self.note(status)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if word == "slow":
                for begin in range(0, len(data), 4096):
                    self.wfile.write(data[begin : begin + 4096])
                    time.sleep(float(amount))
            else:
                self.wfile.write(data[: int(amount)])
                self.wfile.flush()
                if word == "stall":
                    self.hub.release.wait(60)
        self.close_connection = True
