# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of a run."""

from __future__ import annotations

import concurrent.futures
import datetime
import multiprocessing
import pathlib

import pytest
from cryptography import x509

from ansible_collections.startline.lab.plugins.module_utils._agent import wire
from ansible_collections.startline.lab.plugins.plugin_utils import _tls

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
LATER = NOW + datetime.timedelta(hours=5)


@pytest.fixture(scope="module")
def authority() -> _tls.Credentials:
    return _tls.new_authority("run-1", NOW, LATER)


def test_a_member_may_connect_and_the_rendezvous_may_serve(authority: _tls.Credentials) -> None:
    for made, purpose, uri in (
        (_tls.issue_member(authority, "run-1", "a-0", NOW, LATER), "clientAuth", "startline://run-1/member/a-0"),
        (_tls.issue_rendezvous(authority, "run-1", NOW, LATER), "serverAuth", "startline://run-1/rendezvous"),
    ):
        certificate = x509.load_pem_x509_certificate(made.certificate.encode())
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [entry._name for entry in usage] == [purpose]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
        assert certificate.not_valid_before_utc == NOW - datetime.timedelta(days=1)
        assert certificate.not_valid_after_utc == LATER
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert "PRIVATE" not in repr(made)


def test_no_certificate_outlives_its_authority(authority: _tls.Credentials) -> None:
    made = _tls.issue_member(authority, "run-1", "a-0", NOW, LATER + datetime.timedelta(days=9))
    assert x509.load_pem_x509_certificate(made.certificate.encode()).not_valid_after_utc == LATER


def test_still_good(authority: _tls.Credentials) -> None:
    uri = wire.member_uri("run-1", "a-0")
    made = _tls.issue_member(authority, "run-1", "a-0", NOW, LATER).certificate
    other = _tls.new_authority("run-1", NOW, LATER).certificate
    assert _tls.still_good(made, authority.certificate, uri, NOW)
    assert not _tls.still_good(made, authority.certificate, wire.member_uri("run-1", "a-1"), NOW)
    assert not _tls.still_good(made, other, uri, NOW)
    assert not _tls.still_good(made, authority.certificate, uri, LATER - datetime.timedelta(minutes=30))
    assert not _tls.still_good(made, authority.certificate, uri, NOW - datetime.timedelta(days=2))
    assert not _tls.still_good("garbage", authority.certificate, uri, NOW)


def test_a_directory_keeps_what_is_good_and_only_its_owner_reads_it(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "runs/run-1/tls"
    first = _tls.Directory(path, "run-1")
    made = first.member("a-0", NOW, LATER), first.rendezvous(NOW, LATER), first.authority(NOW, LATER)
    second = _tls.Directory(path, "run-1")
    assert made == (second.member("a-0", NOW, LATER), second.rendezvous(NOW, LATER), second.authority(NOW, LATER))
    assert path.stat().st_mode & 0o777 == 0o700
    assert {entry.stat().st_mode & 0o777 for entry in path.iterdir()} == {0o600}


def test_what_is_about_to_expire_is_made_anew(tmp_path: pathlib.Path) -> None:
    store = _tls.Directory(tmp_path, "run-1")
    before = store.member("a-0", NOW, LATER)
    soon = LATER - datetime.timedelta(minutes=30)
    after = store.member("a-0", soon, soon + datetime.timedelta(hours=5))
    assert after != before
    authority = store.authority(soon, soon + datetime.timedelta(hours=5))
    assert _tls.still_good(after.certificate, authority.certificate, wire.member_uri("run-1", "a-0"), soon)


def _issue(path: str, member: str) -> str:
    store = _tls.Directory(path, "run-1")
    store.member(member, NOW, LATER)
    return store.authority(NOW, LATER).certificate


def test_a_run_shorter_than_the_margin_has_one_authority(tmp_path: pathlib.Path) -> None:
    # Each host is set up by a call of its own: were the authority made anew by each, no agent would be let in.
    end = NOW + datetime.timedelta(minutes=40, microseconds=5)
    first = _tls.Directory(tmp_path, "run-1", until=end).member("a-0", NOW, end)
    authority = _tls.Directory(tmp_path, "run-1", until=end).authority(NOW, end)
    later = NOW + datetime.timedelta(minutes=30)
    assert _tls.Directory(tmp_path, "run-1", until=end).authority(later, end) == authority
    assert _tls.Directory(tmp_path, "run-1", until=end).member("a-0", later, end) == first


def test_a_run_that_is_given_more_time_gets_certificates_that_last(tmp_path: pathlib.Path) -> None:
    more = LATER + datetime.timedelta(hours=5)
    before = _tls.Directory(tmp_path, "run-1", until=LATER).member("a-0", NOW, LATER)
    after = _tls.Directory(tmp_path, "run-1", until=more).member("a-0", NOW, more)
    assert after != before
    assert x509.load_pem_x509_certificate(after.certificate.encode()).not_valid_after_utc == more


def test_many_processes_agree_on_one_authority(tmp_path: pathlib.Path) -> None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=context) as pool:
        found = set(pool.map(_issue, [str(tmp_path)] * 6, [f"a-{i % 4}" for i in range(6)]))
    assert len(found) == 1


def test_a_directory_that_cannot_be_used_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(_tls.TlsError, match="file/tls"):
        _tls.Directory(tmp_path / "file/tls", "run-1").authority(NOW, LATER)
