# SPDX-License-Identifier: GPL-3.0-or-later
"""An object store on loopback: moto's S3, and in front of it what a test wants to go wrong."""

from __future__ import annotations

import collections
import logging
import threading
import typing as t

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "lab"


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_arguments: t.Any) -> None:
        """Nothing."""


def _hide(start_response: t.Any) -> t.Any:
    def start(status: str, headers: t.Any, *more: t.Any) -> t.Any:
        return start_response("403 Forbidden" if status.startswith("404") else status, headers, *more)

    return start


class MotoStore:
    """Serves until `close`. `fault` may give a status and a code for a request in moto's place; `requests` counts methods."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()  # a conditional write is one step in S3
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Handler)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.fault: t.Callable[[dict[str, t.Any]], tuple[int, str] | None] = lambda environ: None
        #: Answer like S3 to who may not list the whole bucket: what is not there is refused.
        self.hides = False
        self.requests: collections.Counter[str] = collections.Counter()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.client = self._client()
        self.client.create_bucket(Bucket=BUCKET)

    def _client(self) -> t.Any:
        import boto3

        keys = {"aws_access_key_id": "key-of-a-test", "aws_secret_access_key": "secret-of-a-test"}
        return boto3.session.Session().client("s3", region_name="us-east-1", endpoint_url=self.url, **keys)

    def __call__(self, environ: dict[str, t.Any], start_response: t.Any) -> t.Iterable[bytes]:
        method = environ["REQUEST_METHOD"]
        self.requests["LIST" if "list-type=2" in environ["QUERY_STRING"] else method] += 1
        fault = self.fault(environ)
        if fault is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            body = f"<Error><Code>{fault[1]}</Code></Error>".encode()
            start_response(f"{fault[0]} Refused", [("Content-Length", str(len(body)))])
            return [body]
        if self.hides and method == "GET" and "list-type=2" not in environ["QUERY_STRING"]:
            start_response = _hide(start_response)
        with self._lock:
            return list(self._moto(environ, start_response))

    def get(self, key: str) -> bytes:
        return t.cast(bytes, self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def keys(self, prefix: str) -> set[str]:
        return {entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", ())}

    def close(self) -> None:
        """Stop, and forget all objects."""
        from moto.backends import get_backend

        self._server.shutdown()
        self._server.server_close()
        for backend in get_backend("s3").values():
            for one in backend.values():
                one.reset()
