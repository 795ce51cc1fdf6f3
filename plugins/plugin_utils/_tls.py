# SPDX-License-Identifier: GPL-3.0-or-later
"""Certificates of a run: an authority of its own, one certificate for each member and one for the rendezvous.

This util is PRIVATE to the collection.

What is trusted is a name in the certificate (a URI, `wire.member_uri` and `wire.rendezvous_uri`), never an address:
hosts are reached at addresses that nobody knows when the certificates are made. All keys are ECDSA P-256.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import pathlib
import typing as t

from ansible_collections.startline.lab.plugins.module_utils._agent import wire
from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError

#: Clocks of hosts may be wrong by this much before chrony has set them.
SKEW: t.Final = datetime.timedelta(days=1)
#: Where nobody says how long a certificate has to be good, one that is good for less than this is made anew.
RENEW: t.Final = datetime.timedelta(hours=1)

AUTHORITY: t.Final = "ca"
RENDEZVOUS: t.Final = "rendezvous"


class TlsError(Exception):
    """Certificates cannot be made or used; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Credentials:
    """A certificate and its key, both PEM. The key is not shown."""

    certificate: str
    key: str = dataclasses.field(repr=False)


# ---- pure ------------------------------------------------------------------------------------------------------------


def new_authority(run_id: str, now: datetime.datetime, expires: datetime.datetime) -> Credentials:
    """A self-signed authority that is good from a day before `now` until `expires`."""
    x509, ec, hashes = _cryptography()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Startline {run_id}"[:64])])
    certificate = (
        _builder(name, name, key.public_key(), now, expires)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _credentials(certificate, key)


def issue_member(
    authority: Credentials, run_id: str, member: str, now: datetime.datetime, expires: datetime.datetime
) -> Credentials:
    """The certificate of a member: it may connect as this member of this run, and serve nothing."""
    return _issue(authority, member, wire.member_uri(run_id, member), False, now, expires)


def issue_rendezvous(
    authority: Credentials, run_id: str, now: datetime.datetime, expires: datetime.datetime
) -> Credentials:
    """The certificate of the rendezvous: it may serve this run, and connect nowhere."""
    return _issue(authority, RENDEZVOUS, wire.rendezvous_uri(run_id), True, now, expires)


def still_good(
    certificate: str,
    authority: str,
    uri: str | None,
    now: datetime.datetime,
    until: datetime.datetime | None = None,
) -> bool:
    """Whether a certificate has that name, was issued by that authority, and is valid from `now` to `until`, or for a
    while."""
    x509, _ec, _hashes = _cryptography()
    from cryptography.exceptions import InvalidSignature

    try:
        found = x509.load_pem_x509_certificate(certificate.encode("ascii"))
        issuer = x509.load_pem_x509_certificate(authority.encode("ascii"))
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    # Certificates know whole seconds only.
    last = (until or now + RENEW).replace(microsecond=0)
    if not (found.not_valid_before_utc <= now < found.not_valid_after_utc and last <= found.not_valid_after_utc):
        return False
    if uri is None:
        return True
    with contextlib.suppress(x509.ExtensionNotFound):
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return uri in names.get_values_for_type(x509.UniformResourceIdentifier)
    return False


def _issue(
    authority: Credentials, common: str, uri: str, server: bool, now: datetime.datetime, expires: datetime.datetime
) -> Credentials:
    x509, ec, hashes = _cryptography()
    from cryptography.hazmat.primitives import serialization

    issuer = x509.load_pem_x509_certificate(authority.certificate.encode("ascii"))
    issuer_key = serialization.load_pem_private_key(authority.key.encode("ascii"), password=None)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common[:64])])
    purpose = x509.ExtendedKeyUsageOID.SERVER_AUTH if server else x509.ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        _builder(name, issuer.subject, key.public_key(), now, min(expires, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return _credentials(certificate, key)


def _builder(
    name: t.Any, issuer: t.Any, public_key: t.Any, now: datetime.datetime, expires: datetime.datetime
) -> t.Any:
    """What all certificates have in common, still to be signed."""
    x509, _ec, _hashes = _cryptography()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(expires)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _usage(**allowed: bool) -> t.Any:
    x509, _ec, _hashes = _cryptography()
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in names})


def _credentials(certificate: t.Any, key: t.Any) -> Credentials:
    from cryptography.hazmat.primitives import serialization

    pem = serialization.Encoding.PEM
    return Credentials(
        certificate=certificate.public_bytes(pem).decode("ascii"),
        key=key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode("ascii"),
    )


def _cryptography() -> tuple[t.Any, t.Any, t.Any]:
    """The parts of cryptography that are needed, or an error that says what to install."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise TlsError(str(RequirementError("a run's authority", error))) from error
    return x509, ec, hashes


# ---- on the disk -----------------------------------------------------------------------------------------------------


class Directory:
    """The certificates of one run below a directory that only its owner can read. Several processes may use it at
    once.

    A certificate is made anew when it is not good until `until`: when the run ends, for one whose end is known. Without
    it, when it is about to expire.
    """

    def __init__(self, path: str | os.PathLike[str], run_id: str, until: datetime.datetime | None = None) -> None:
        self._path = pathlib.Path(path)
        self._run_id = run_id
        self._until = until

    def authority(self, now: datetime.datetime, expires: datetime.datetime) -> Credentials:
        """The authority of the run, made by the first who asks."""
        with self._locked():
            return self._authority(now, expires)

    def member(self, member: str, now: datetime.datetime, expires: datetime.datetime) -> Credentials:
        """The certificate of a member."""
        uri = wire.member_uri(self._run_id, member)
        return self._get(
            f"member-{member}", uri, now, expires, lambda ca: issue_member(ca, self._run_id, member, now, expires)
        )

    def rendezvous(self, now: datetime.datetime, expires: datetime.datetime) -> Credentials:
        """The certificate of the rendezvous."""
        uri = wire.rendezvous_uri(self._run_id)
        return self._get(RENDEZVOUS, uri, now, expires, lambda ca: issue_rendezvous(ca, self._run_id, now, expires))

    def _get(
        self,
        name: str,
        uri: str,
        now: datetime.datetime,
        expires: datetime.datetime,
        issue: t.Callable[[Credentials], Credentials],
    ) -> Credentials:
        with self._locked():
            authority = self._authority(now, expires)
            known = self._read(name)
            if known is not None and still_good(known.certificate, authority.certificate, uri, now, self._until):
                return known
            made = issue(authority)
            self._write(name, made)
            return made

    def _authority(self, now: datetime.datetime, expires: datetime.datetime) -> Credentials:
        known = self._read(AUTHORITY)
        if known is not None and still_good(known.certificate, known.certificate, None, now, self._until):
            return known
        made = new_authority(self._run_id, now, expires)
        self._write(AUTHORITY, made)
        return made

    @contextlib.contextmanager
    def _locked(self) -> t.Iterator[None]:
        """Hosts are set up in parallel processes: one at a time here."""
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TlsError(f"cannot use {self._path} for the certificates of the run: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _read(self, name: str) -> Credentials | None:
        """What is stored under `name`; a certificate and its key are one file, so they always belong together."""
        try:
            text = (self._path / f"{name}.pem").read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        certificate, found, key = text.partition("-----BEGIN PRIVATE KEY-----")
        return Credentials(certificate, found + key) if found else None

    def _write(self, name: str, credentials: Credentials) -> None:
        path = self._path / f"{name}.pem"
        new = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(credentials.certificate + credentials.key)
            stream.flush()
            os.fsync(stream.fileno())
        new.rename(path)
