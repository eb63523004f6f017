"""A local Google Cloud Storage for the real clients of TensorFlow and TensorStore.

Both connect by HTTPS to www.googleapis.com and storage.googleapis.com, here through a proxy that
answers the requests itself. Only requests that these two clients send are supported. The proxy is a
separate process, because TensorFlow blocks all other threads while it waits.

    with FakeGcs(tmp_path, "bucket") as gcs:
        subprocess.run(command, env=os.environ | gcs.environment)
        assert b"..." in gcs.read("bucket", "run/metrics.jsonl")
"""

import json
import re
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class FakeGcs:
    """The service, which runs from `__enter__` to `__exit__` and keeps its objects in a folder.

    Args:
      folder: created.
      buckets: names of the buckets that exist.

    Attributes:
      environment: variables that direct the clients to this service.
    """

    def __init__(self, folder, *buckets):
        self._folder = Path(folder)
        for bucket in buckets:
            (self._folder / bucket).mkdir(parents=True)
        self.refuse()

    def __enter__(self):
        command = [sys.executable, __file__, str(self._folder)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        proxy = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        certificate = str(self._folder / "certificate.pem")
        self.environment = {
            **dict.fromkeys(("https_proxy", "HTTPS_PROXY"), proxy),
            **dict.fromkeys(("CURL_CA_BUNDLE", "TENSORSTORE_CA_BUNDLE"), certificate),
            "no_proxy": "localhost,127.0.0.1",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def names(self, bucket):
        """Sorted names of the objects in a bucket."""
        return sorted(unquote(path.name) for path in (self._folder / bucket).iterdir())

    def read(self, bucket, name):
        return (self._folder / bucket / quote(name, safe="")).read_bytes()

    def refuse(self, method="", pattern="", status=0):
        """From now on answers requests with this status.

        After 429 and 5xx the clients retry for minutes.

        Args:
          method: READ, LIST, WRITE, COPY or DELETE; "" for all.
          pattern: regular expression for bucket/name.
          status: HTTP status; 0 answers normally again.
        """
        path = self._folder / "refuse.json"
        path.with_suffix(".new").write_text(json.dumps([method, pattern, status]))
        path.with_suffix(".new").replace(path)


class _Object(NamedTuple):
    content: bytes
    generation: int
    updated: float


class _Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status):
        super().__init__(status)
        self.status = status


class _Service:
    """Answers requests."""

    def __init__(self, folder):
        self._folder, self._objects, self._uploads = folder, {}, {}
        self._lock, self._generation = threading.Lock(), 0

    def answer(self, method, url, headers, body):
        """(status, headers, body) of a request."""
        parts = urlsplit(url)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self._lock:
            if parts.path.startswith("/upload/"):
                return self._upload(method, parts.path, query, body)
            found = re.fullmatch(r"/storage/v1/b/([^/]+)(/o)?(?:/(.+))?", parts.path)
            if not found:  # a direct download URL
                bucket, _, name = parts.path[1:].partition("/")
                return self._read(bucket, unquote(name), query | {"alt": "media"}, headers)
            bucket, listed, name = found.groups()
            if name and "/rewriteTo/" in name:
                return self._copy(bucket, *re.split("/rewriteTo/b/|/o/", name))
            if name:
                act = self._delete if method == "DELETE" else self._read
                return act(bucket, unquote(name), query, headers)
            return self._list(bucket, query) if listed else self._bucket(bucket)

    def _check(self, request, bucket, name):
        """Raises the configured refusal, or 404 for an unknown bucket."""
        method, pattern, status = json.loads((self._folder / "refuse.json").read_text())
        if method in ("", request) and status and re.search(pattern, f"{bucket}/{name}"):
            raise _Refusal(status)
        if not (self._folder / bucket).is_dir():
            raise _Refusal(404)

    def _file(self, bucket, name):
        return self._folder / bucket / quote(name, safe="")

    def _put(self, bucket, name, content):
        self._generation += 1
        self._objects[bucket, name] = _Object(content, self._generation, time.time())
        self._file(bucket, name).write_bytes(content)
        return self._describe(bucket, name)

    def _get(self, bucket, name):
        if (bucket, name) not in self._objects:
            raise _Refusal(404)
        return self._objects[bucket, name]

    def _describe(self, bucket, name):
        found = self._get(bucket, name)
        date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(found.updated))
        date += f".{int(found.updated % 1 * 1000):03d}Z"
        about = {"name": name, "bucket": bucket, "size": str(len(found.content))}
        return (
            about
            | dict.fromkeys(("updated", "timeCreated"), date)
            | {"generation": str(found.generation)}
        )

    def _match(self, bucket, name, query):
        """Raises 412 if the request is only for another generation."""
        now = self._objects.get((bucket, name))
        generation = now.generation if now else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise _Refusal(412)

    def _bucket(self, bucket):
        self._check("LIST", bucket, "")
        return _json({"name": bucket, "location": "US"})

    def _list(self, bucket, query):
        """A page of the objects and folders whose names start with the prefix."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        self._check("LIST", bucket, prefix)
        limit = int(query.get("maxResults", 1000))
        items, prefixes = [], []
        first = query.get("pageToken") or query.get("startOffset", "")
        for name in sorted(n for b, n in self._objects if b == bucket):
            if not name.startswith(prefix) or name < first:
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                break
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            folder = name[: end + 1]
            if folder and folder in prefixes:
                continue
            if len(items) + len(prefixes) == limit:
                page = {"items": items, "prefixes": prefixes, "nextPageToken": name}
                return _json(page)
            if folder:
                prefixes.append(folder)
            else:
                items.append(self._describe(bucket, name))
        return _json({"items": items, "prefixes": prefixes})

    def _read(self, bucket, name, query, headers):
        self._check("READ", bucket, name)
        found = self._get(bucket, name)
        if query.get("alt") != "media":
            return _json(self._describe(bucket, name))
        if int(query.get("ifGenerationNotMatch", 0)) == found.generation:
            raise _Refusal(304)
        self._match(bucket, name, query)
        return _content(found, headers.get("Range"))

    def _delete(self, bucket, name, query, headers):
        self._check("DELETE", bucket, name)
        self._match(bucket, name, query)
        self._get(bucket, name)
        del self._objects[bucket, name]
        self._file(bucket, name).unlink()
        return 204, {}, b""

    def _copy(self, bucket, name, *to):
        name, *to = (unquote(part) for part in (name, *to))
        self._check("COPY", bucket, name)
        self._put(*to, self._get(bucket, name).content)
        return _json({"done": True, "resource": self._describe(*to)})

    def _upload(self, method, path, query, body):
        """An upload in one request, or a resumable upload in two."""
        if method == "PUT":
            return _json(self._put(*self._uploads.pop(query["upload_id"]), body))
        bucket, name = path.split("/")[5], query["name"]
        self._check("WRITE", bucket, name)
        self._match(bucket, name, query)
        if query["uploadType"] == "media":
            return _json(self._put(bucket, name, body))
        key = str(len(self._uploads)) + name
        self._uploads[key] = (bucket, name)
        place = f"https://{HOSTS[0]}{path}?upload_id={quote(key, safe='')}"
        return 200, {"Location": place}, b""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self):
        host = self.path.partition(":")[0]
        if host not in HOSTS:
            self.send_error(502, f"{host} is not served here")
            return
        self.send_response(200)
        self.end_headers()
        self.connection = self.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def _serve(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            status, headers, content = self.service.answer(
                self.command, self.path, self.headers, body
            )
        except _Refusal as refusal:
            status, headers, content = refusal.status, {}, b"refused"
        if status in (204, 304):
            content = b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _chunk(self):
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    do_GET = do_POST = do_PUT = do_DELETE = _serve

    def log_message(self, *_):
        pass


def _json(value):
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _content(found, wanted):
    """An object, or the requested range of it: "bytes=2-5", "bytes=2-" or "bytes=-5"."""
    headers = {"x-goog-generation": str(found.generation)}
    if not wanted:
        return 200, headers, found.content
    first, last = wanted.removeprefix("bytes=").split("-")
    size = len(found.content)
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= size:
        raise _Refusal(416)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return 206, headers, found.content[start:stop]


def _tls(folder):
    """A TLS context whose certificate, in the folder, the clients must trust."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ",".join(f"DNS:{host}" for host in HOSTS)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-subj", "/CN=fake", "-addext", f"subjectAltName={names}"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def main(folder):
    """Serves a folder; prints the port."""
    context = _tls(folder)

    class Handler(_Handler):
        service, tls = _Service(folder), context

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
