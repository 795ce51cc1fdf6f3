# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands in front of moto: S3 verifies what it stores, EC2 waits for what is about to change."""

from __future__ import annotations

import base64
import hashlib
import io
import typing as t

import pytest

from localcloud import api

BODY = b"evidence"
GOOD = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
BAD = base64.b64encode(hashlib.sha256(b"other").digest()).decode()


class FakeCloud:
    def __init__(self) -> None:
        self.settled: list[list[str]] = []
        self.followed = 0

    def settle(self, instances: list[str]) -> None:
        self.settled.append(instances)

    def follow(self) -> None:
        self.followed += 1


class FakeMoto:
    def __init__(self) -> None:
        self.seen: list[dict[str, t.Any]] = []

    def __call__(self, environ: dict[str, t.Any], start_response: t.Any) -> list[bytes]:
        self.seen.append({**environ, "body": environ["wsgi.input"].read()})
        start_response("200 OK", [])
        return [b"moto"]


def call(method: str, path: str, body: bytes = b"", **environ: t.Any) -> tuple[str, bytes, FakeCloud, FakeMoto]:
    cloud, moto, status = FakeCloud(), FakeMoto(), []
    asked = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **environ,
    }
    answer = b"".join(api.Gate(t.cast(t.Any, cloud), moto)(asked, lambda s, h: status.append(s)))
    return status[0], answer, cloud, moto


def form(text: str) -> tuple[str, bytes, FakeCloud, FakeMoto]:
    return call("POST", "/", text.encode(), CONTENT_TYPE="application/x-www-form-urlencoded; charset=utf-8")


@pytest.mark.parametrize(
    "where", [{"HTTP_X_AMZ_CHECKSUM_SHA256": BAD}, {"QUERY_STRING": f"x-amz-checksum-sha256={BAD}"}]
)
def test_a_body_that_is_not_what_was_promised_is_refused(where: dict[str, str]) -> None:
    status, answer, _cloud, moto = call("PUT", "/bucket/key", BODY, **where)
    assert status.startswith("400")
    assert b"<Code>BadDigest</Code>" in answer
    assert not moto.seen


def test_a_promised_body_is_stored_with_its_checksum() -> None:
    status, _answer, _cloud, moto = call("PUT", "/bucket/key", BODY, HTTP_X_AMZ_CHECKSUM_SHA256=GOOD)
    assert status == "200 OK"
    assert moto.seen[0]["body"] == BODY
    assert moto.seen[0]["HTTP_X_AMZ_SDK_CHECKSUM_ALGORITHM"] == "SHA256"


def test_a_body_without_a_promise_is_stored() -> None:
    assert call("PUT", "/bucket/key", BODY)[3].seen[0]["body"] == BODY


def test_describe_waits_for_the_named_instances_and_changes_nothing() -> None:
    _status, _answer, cloud, moto = form(
        "Action=DescribeInstances&InstanceId.1=i-1&InstanceId.2=i-2&Version=2016-11-15"
    )
    assert cloud.settled == [["i-1", "i-2"]]
    assert cloud.followed == 0
    assert moto.seen[0]["body"].startswith(b"Action=DescribeInstances")


def test_the_network_follows_every_change() -> None:
    assert form("Action=AssociateAddress&InstanceId=i-1")[2].followed == 1


def test_the_shutdown_behaviour_is_said_as_moto_understands_it() -> None:
    moto = form("Action=ModifyInstanceAttribute&InstanceId=i-1&InstanceInitiatedShutdownBehavior.Value=stop")[3]
    assert moto.seen[0]["body"] == (
        b"Action=ModifyInstanceAttribute&InstanceId=i-1&Attribute=InstanceInitiatedShutdownBehavior&Value=stop"
    )
    assert moto.seen[0]["CONTENT_LENGTH"] == str(len(moto.seen[0]["body"]))


def test_nobody_resets_moto_below_running_hosts() -> None:
    status, answer, _cloud, moto = call("POST", "/moto-api/reset")
    assert status.startswith("403")
    assert b"localcloud down" in answer
    assert not moto.seen
