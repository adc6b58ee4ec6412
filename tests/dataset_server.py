"""A server of files on this machine, and what a toy data set holds."""

import hashlib
import http.server
import io
import re
import threading
import time
import zipfile

from metabench.datasets import catalogue


class Server:
    """Serves bytes by path; ``cut`` breaks the next answer off, ``log`` holds (path, Range),
    ``seconds`` is what it thinks before it answers."""

    def __init__(self):
        self.files, self.log, self.cut, self.ranges, self.seconds = {}, [], None, True, 0
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(owner.seconds)
                asked = self.headers.get("Range")
                owner.log.append((self.path, asked))
                body = owner.files.get(self.path)
                if body is None:
                    self.send_error(404, "not here")
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
                if not owner.ranges:
                    start = 0
                if start and start >= len(body):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                part = body[start:]
                if owner.cut is not None:
                    part, owner.cut = part[: owner.cut], None
                self.wfile.write(part)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.01}
        )

    def url(self, path):
        return f"http://127.0.0.1:{self.http.server_port}{path}"


def md5(body):
    return "md5:" + hashlib.md5(body).hexdigest()


BODY = bytes(range(256)) * 1000


def archive(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        for name in names:
            packed.writestr(name, f"contents of {name}")
    return out.getvalue()


NAMES = ("inside/a/1.png", "inside/b/2.png", "inside/readme.txt")


def put_arrays(root):
    (root / "toy").mkdir(parents=True)
    (root / "toy" / "x.npz").write_bytes(b"abc")
    return root / "toy"


def put_pictures(root):
    for name in NAMES:
        path = root / "toy-py" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"contents of {name}")
    return root / "toy-py"


def only(monkeypatch, name, layout):
    made = catalogue.DataSet(name, "", "", "", "", layouts=(layout,))
    monkeypatch.setitem(catalogue.DATASETS, name, made)
