# SPDX-License-Identifier: GPL-3.0-or-later
"""The API: moto's server in our process, and in front of it what EC2 and S3 promise and moto does not do.

Instance metadata is served here too: VPCs bring requests to its address here, and hosts name it in their Host header.
"""

from __future__ import annotations

import base64
import hashlib
import http
import io
import json
import logging
import os
import secrets
import threading
import time
import typing as t
import urllib.parse

from localcloud import imds, instances
from localcloud.image import Image
from localcloud.instances import Cloud
from localcloud.machine import RUN, CloudError, run
from localcloud.network import API_ADDRESS, API_PORT, METADATA_ADDRESS, TIME_PORT

log = logging.getLogger("localcloud.requests")

ENDPOINT = f"http://{API_ADDRESS}:{API_PORT}"

Environ = dict[str, t.Any]
StartResponse = t.Callable[..., t.Any]

_BEHAVIOUR = "InstanceInitiatedShutdownBehavior.Value"
_BAD_DIGEST = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>BadDigest</Code><Message>The SHA256 you specified did not match what we received.</Message></Error>"""


def prepare_moto(image: Image) -> None:
    """Moto reads these when it is imported."""
    amis = RUN / "amis.json"
    amis.write_text(json.dumps([image.ami]))
    os.environ.update(
        MOTO_AMIS_PATH=str(amis),
        MOTO_IAM_LOAD_MANAGED_POLICIES="true",
        MOTO_ENABLE_AMI_VALIDATION="true",
        MOTO_ENABLE_KEYPAIR_VALIDATION="true",
        MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION="true",
    )


class Gate:
    """The WSGI application: our own calls, EC2's waiting, S3's checks; the rest is moto's."""

    def __init__(self, cloud: Cloud, moto: t.Callable[[Environ, StartResponse], t.Iterable[bytes]]) -> None:
        self._cloud = cloud
        self._moto = moto
        self._secret = secrets.token_bytes(32)
        self._writes = threading.Lock()

    def __call__(self, environ: Environ, start_response: StartResponse) -> t.Iterable[bytes]:
        if environ.get("HTTP_HOST", "").partition(":")[0] == str(METADATA_ADDRESS):
            return self._metadata(environ, start_response)
        if environ["PATH_INFO"] == "/_startline/status":
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._cloud.status()).encode()]
        if environ["PATH_INFO"] == "/moto-api/reset":
            start_response("403 Forbidden", [])
            return [b"hosts run here: terminate them, or `python -m localcloud down`\n"]
        if environ["REQUEST_METHOD"] == "PUT":
            return self._put(environ, start_response)
        if environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
            return self._query_api(environ, start_response)
        return self._moto(environ, start_response)

    def _metadata(self, environ: Environ, start_response: StartResponse) -> t.Iterable[bytes]:
        me = self._cloud.metadata(environ["REMOTE_ADDR"])
        environ["startline.action"] = f" of {me.instance}" if me else " of nobody"
        names = {name: name.removeprefix("HTTP_").replace("_", "-").lower() for name in environ}
        headers = {names[name]: value for name, value in environ.items() if name.startswith("HTTP_")}
        method, target = environ["REQUEST_METHOD"], environ["RAW_URI"]
        answer = imds.respond(me, method, target, headers, secret=self._secret, now=time.time())
        said = [("content-type", "text/plain"), ("content-length", str(len(answer.body))), *answer.headers.items()]
        start_response(f"{answer.status} {http.HTTPStatus(answer.status).phrase}", said)
        return [answer.body]

    def _query_api(self, environ: Environ, start_response: StartResponse) -> t.Iterable[bytes]:
        form = dict(urllib.parse.parse_qsl(_read_body(environ).decode(errors="replace")))
        action = environ["startline.action"] = form.get("Action", "")
        behaviour = form.pop(_BEHAVIOUR, None)
        if action == "ModifyInstanceAttribute" and behaviour:  # moto knows only the older way to say it
            form.update(Attribute=_BEHAVIOUR.partition(".")[0], Value=behaviour)
            body = urllib.parse.urlencode(form).encode()
            environ.update({"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)})
        if action in ("DescribeInstances", "DescribeInstanceStatus"):
            self._cloud.settle([value for name, value in form.items() if name.startswith("InstanceId.")])
        answer = self._moto(environ, start_response)
        if not action.startswith(("Describe", "Get", "List")):
            self._cloud.follow()
        return answer

    def _put(self, environ: Environ, start_response: StartResponse) -> t.Iterable[bytes]:
        """S3 stores what the client says it sends, or refuses; conditional writes see one another."""
        body = _read_body(environ)
        query = dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", "")))
        given = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256") or query.get("x-amz-checksum-sha256")
        chunked = environ.get("HTTP_X_AMZ_CONTENT_SHA256", "").startswith("STREAMING-")
        if given and not chunked:
            if given != base64.b64encode(hashlib.sha256(body).digest()).decode():
                start_response("400 Bad Request", [("Content-Type", "application/xml")])
                return [_BAD_DIGEST]
            # Moto keeps and gives back a checksum only when its algorithm is named.
            environ.setdefault("HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM", "SHA256")
            environ["HTTP_X_AMZ_CHECKSUM_SHA256"] = given
        with self._writes:
            return self._moto(environ, start_response)


def _read_body(environ: Environ) -> bytes:
    """The request's body, which moto will read again."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not length and not environ.get("wsgi.input_terminated"):
        return b""
    body: bytes = environ["wsgi.input"].read(int(length)) if length else environ["wsgi.input"].read()
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def listen(cloud: Cloud) -> t.Callable[[], None]:
    """Bind the endpoint; the returned function serves until the process ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        def make_environ(self) -> dict[str, t.Any]:
            self.began = time.monotonic()
            self.environ = super().make_environ()
            return self.environ

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            # Not the query: of a presigned URL it is a secret.
            path = urllib.parse.urlsplit(self.path).path
            action = getattr(self, "environ", {}).get("startline.action", "")
            took = 1000 * (time.monotonic() - getattr(self, "began", time.monotonic()))
            log.info("%s %s %s%s %s %.0f ms", self.client_address[0], self.command, path, action, code, took)

    instances.install(cloud)
    gate = Gate(cloud, DomainDispatcherApplication(create_backend_app))
    server = make_server(str(API_ADDRESS), API_PORT, gate, threaded=True, request_handler=Handler)
    threading.Thread(target=_warm, daemon=True).start()
    return server.serve_forever


def check_ports() -> None:
    """CloudError when a port that is served here is held already, also by a program that listens at all addresses."""
    for port in (API_PORT, TIME_PORT):
        held = f"( sport = :{port} ) and ( src {API_ADDRESS} or src 0.0.0.0 )"
        if holder := run("ss", "--no-header", "-ltunp", held).strip():
            raise CloudError(f"port {port} is held by another program: {holder}", "Stop that program.")


def _warm() -> None:
    """Load what everybody asks first, while the user's program starts."""
    from moto.backends import get_backend
    from moto.core.models import DEFAULT_ACCOUNT_ID

    for service, region in (("ec2", "us-east-1"), ("iam", "aws"), ("s3", "aws"), ("sts", "aws")):
        t.cast(t.Any, get_backend)(service)[DEFAULT_ACCOUNT_ID][region]
