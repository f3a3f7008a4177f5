"""A folder behind a web server of this machine that answers range requests, and counts what it sends."""

import threading
from contextlib import contextmanager

from flask import Flask, request, send_from_directory
from werkzeug.serving import make_server


@contextmanager
def served(folder):
    """(URL of the folder, list of (path, bytes) of every answer with a body)."""
    app, sent = Flask(__name__), []

    @app.route("/<path:path>")
    def file(path):
        return send_from_directory(folder, path, conditional=True)

    @app.after_request
    def count(response):
        if request.method == "GET":
            sent.append((request.path, response.content_length))
        return response

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}", sent
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
