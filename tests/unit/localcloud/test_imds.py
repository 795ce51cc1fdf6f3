# SPDX-License-Identifier: GPL-3.0-or-later
"""What the instance metadata service answers."""

from __future__ import annotations

import typing as t
from dataclasses import replace

import pytest

from localcloud import imds
from localcloud.imds import Answer, Metadata

SECRET = b"secret"
NOW = 1_000_000.0
ME = Metadata(
    instance="i-1",
    documents={
        "meta-data/instance-id": "i-1",
        "meta-data/placement/region": "us-east-1",
        "meta-data/public-keys/0/openssh-key": "ssh-ed25519 AAAA",
        "meta-data/tags/instance/startline:run": "dkg-1",
        "meta-data/iam/security-credentials/role": lambda: '{"Code": "Success"}',
    },
    key_name="key",
    user_data=b"#!/bin/sh\n",
)


def ask(method: str, path: str, me: Metadata | None = ME, now: float = NOW, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return imds.respond(me, method, path, named, secret=SECRET, now=now)


def get(path: str, me: Metadata = ME) -> Answer:
    return ask("GET", path, me, x_aws_ec2_metadata_token=imds.make_token(SECRET, me.instance, int(NOW) + 60))


@pytest.mark.parametrize("ttl", ["1", "21600"])
def test_a_token_is_given_for_its_time(ttl: str) -> None:
    answer = ask("PUT", "/latest/api/token", x_aws_ec2_metadata_token_ttl_seconds=ttl)
    assert answer.status == 200
    assert answer.headers == {imds.TOKEN_TTL: ttl}
    token = answer.body.decode()
    assert ask("GET", "/latest/user-data", x_aws_ec2_metadata_token=token).status == 200
    assert ask("GET", "/latest/user-data", now=NOW + int(ttl), x_aws_ec2_metadata_token=token).status == 401


@pytest.mark.parametrize("ttl", [None, "", "0", "21601", "-1", "x", "²"])
def test_a_token_without_a_sound_lifetime_is_refused(ttl: str | None) -> None:
    headers = {} if ttl is None else {"x_aws_ec2_metadata_token_ttl_seconds": ttl}
    assert ask("PUT", "/latest/api/token", **headers).status == 400


def test_a_token_is_not_given_through_a_proxy() -> None:
    headers = {"x_aws_ec2_metadata_token_ttl_seconds": "60", "x_forwarded_for": "10.0.0.1"}
    assert ask("PUT", "/latest/api/token", **headers).status == 403


@pytest.mark.parametrize("token", [None, "", "x", "9999999999.bad", imds.make_token(SECRET, "i-2", int(NOW) + 60)])
def test_version_2_wants_a_token_of_this_instance(token: str | None) -> None:
    headers = {} if token is None else {"x_aws_ec2_metadata_token": token}
    assert ask("GET", "/latest/meta-data/instance-id", **headers).status == 401


def test_version_1_works_where_tokens_are_optional_and_a_wrong_token_never_does() -> None:
    me = replace(ME, token_required=False)
    assert ask("GET", "/latest/meta-data/instance-id", me).body == b"i-1"
    headers = {"x_aws_ec2_metadata_token": "wrong"}
    assert ask("GET", "/latest/meta-data/instance-id", me, **headers).status == 401


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", b"latest"),
        ("/latest", b"meta-data/\nuser-data"),
        ("/latest/meta-data", b"iam/\ninstance-id\nplacement/\npublic-keys/\ntags/"),
        ("/latest/meta-data/", b"iam/\ninstance-id\nplacement/\npublic-keys/\ntags/"),
        ("/latest/meta-data/public-keys/", b"0=key"),
        ("/latest/meta-data/public-keys/0/", b"openssh-key"),
        ("/latest/meta-data/iam/security-credentials/", b"role"),
        ("/latest/meta-data/iam/security-credentials/role", b'{"Code": "Success"}'),
        ("/latest/meta-data/tags/instance", b"startline:run"),
        ("/latest/meta-data/tags/instance/startline%3Arun", b"dkg-1"),
        ("/latest/user-data", b"#!/bin/sh\n"),
    ],
)
def test_documents_and_listings(path: str, body: bytes) -> None:
    assert get(path) == Answer(200, body)


@pytest.mark.parametrize("path", ["/latest/meta-data/nothing", "/latest/meta", "/1.0/meta-data", "/latest/../etc"])
def test_what_is_not_there(path: str) -> None:
    assert get(path).status == 404


def test_user_data_that_was_not_given_is_not_there() -> None:
    me = replace(ME, user_data=None)
    assert get("/latest/user-data", me).status == 404
    assert get("/latest", me).body == b"meta-data/"


@pytest.mark.parametrize(("me", "status"), [(None, 404), (replace(ME, enabled=False), 403)])
def test_nobody_and_the_disabled_get_nothing(me: Metadata | None, status: int) -> None:
    headers = {"x_aws_ec2_metadata_token_ttl_seconds": "60"}
    assert ask("PUT", "/latest/api/token", me, **headers).status == status


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_other_methods(method: t.Any) -> None:
    assert ask(method, "/latest/meta-data/").status == 405
