# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance metadata service, which VPCs show at 169.254.169.254: who asks is known by the address it asks from.

`of` tells what an instance may know of itself, `respond` answers a request purely. Tokens of version 2 are signed and
not stored: the instance and the time they end at, with a MAC of this process.
Reference: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import typing as t
import urllib.parse
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

TOKEN_TTL = "x-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105 (the name of a header)
TOKEN = "x-aws-ec2-metadata-token"  # noqa: S105
MAX_TTL = 21600
_CREDENTIALS_LAST = timedelta(hours=6)
_TIME = "%Y-%m-%dT%H:%M:%SZ"

Document = str | t.Callable[[], str]


@dataclass(frozen=True)
class Metadata:
    """What an instance may learn about itself. Of `documents` the paths are below /latest/."""

    instance: str
    documents: t.Mapping[str, Document]
    key_name: str | None = None
    user_data: bytes | None = None
    token_required: bool = True
    enabled: bool = True


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: t.Mapping[str, str] = field(default_factory=dict)


def of(instance: t.Any) -> Metadata:
    """The metadata of an instance of moto."""
    backend, options, region = instance.ec2_backend, instance.metadata_options, instance.ec2_backend.region_name
    launched = instance.launch_time.strftime(_TIME)
    identity = {
        "accountId": backend.account_id,
        "architecture": instance.architecture,
        "availabilityZone": instance.placement.zone,
        "imageId": instance.image_id,
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "pendingTime": launched,
        "privateIp": instance.private_ip,
        "region": region,
        "version": "2017-09-30",
    }
    found: dict[str, Document | None] = {
        "ami-id": instance.image_id,
        "hostname": instance.private_dns_name,
        "instance-id": instance.id,
        "instance-type": instance.instance_type,
        "local-hostname": instance.private_dns_name,
        "local-ipv4": instance.private_ip,
        "mac": instance.nics[0].mac_address,
        "placement/availability-zone": instance.placement.zone,
        "placement/region": region,
        "public-ipv4": instance.public_ip,
        "security-groups": "\n".join(sorted(group.name for group in instance.security_groups)),
    }
    if key := backend.key_pairs.get(instance.key_name):
        public = key.material_public
        found["public-keys/0/openssh-key"] = (public.decode() if isinstance(public, bytes) else public).strip()
    if association := backend.iam_instance_profile_associations.get(instance.id):
        profile = association.iam_instance_profile
        info = {"Code": "Success", "InstanceProfileArn": profile.arn, "InstanceProfileId": profile.id}
        found["iam/info"] = json.dumps({**info, "LastUpdated": launched}, indent=2)
        for role in profile.roles[:1]:
            found[f"iam/security-credentials/{role.name}"] = functools.partial(_credentials, instance, role.arn)
    if options.instance_metadata_tags == "enabled":
        found.update({f"tags/instance/{tag['key']}": tag["value"] for tag in instance.get_tags()})
    documents = {f"meta-data/{path}": document for path, document in found.items() if document is not None}
    return Metadata(
        instance=instance.id,
        documents={"dynamic/instance-identity/document": json.dumps(identity, indent=2), **documents},
        key_name=instance.key_name,
        user_data=base64.b64decode(str(instance.user_data)) if instance.user_data else None,
        token_required=options.http_tokens == "required",
        enabled=options.http_endpoint != "disabled",
    )


def _credentials(instance: t.Any, role_arn: str) -> str:
    """Credentials of the role from moto's STS, new ones each time: the SDKs ask again when theirs near their end."""
    from moto.sts.models import sts_backends

    now = datetime.now(UTC)
    session = t.cast(t.Any, sts_backends)[instance.ec2_backend.account_id]["aws"].assume_role(
        region_name=instance.ec2_backend.region_name,
        role_session_name=instance.id,
        role_arn=role_arn,
        policy=None,
        duration=int(_CREDENTIALS_LAST.total_seconds()),
        external_id=None,
    )
    document = {
        "Code": "Success",
        "LastUpdated": now.strftime(_TIME),
        "Type": "AWS-HMAC",
        "AccessKeyId": session.access_key_id,
        "SecretAccessKey": session.secret_access_key,
        "Token": session.session_token,
        "Expiration": (now + _CREDENTIALS_LAST).strftime(_TIME),
    }
    return json.dumps(document, indent=2)


def listing(paths: t.Iterable[str], directory: str) -> str | None:
    """The entries of a directory, directories with a slash; None when there is no such directory."""
    prefix = f"{directory}/" if directory else ""
    inside = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
    entries = {name if not below else f"{name}/" for name, _, below in (path.partition("/") for path in inside)}
    return "\n".join(sorted(entries)) if entries else None


def make_token(secret: bytes, instance: str, ends: int) -> str:
    text = f"{instance}:{ends}"
    return f"{ends}.{hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()}"


def token_holds(token: str, secret: bytes, instance: str, now: float) -> bool:
    ends = token.partition(".")[0]
    if not ends.isdecimal() or now >= int(ends):
        return False
    return hmac.compare_digest(token.encode(), make_token(secret, instance, int(ends)).encode())


def respond(
    me: Metadata | None, method: str, target: str, headers: t.Mapping[str, str], *, secret: bytes, now: float
) -> Answer:
    """The answer to one request. `headers` have lower-case names; `me` is None when nobody has the asker's address."""
    if me is None:
        return Answer(404)
    if not me.enabled:
        return Answer(403)
    path = urllib.parse.unquote(urllib.parse.urlsplit(target).path).strip("/")
    if method == "PUT" and path == "latest/api/token":
        if "x-forwarded-for" in headers:  # a proxy, not the instance
            return Answer(403)
        ttl = headers.get(TOKEN_TTL, "")
        if not ttl.isdecimal() or not 1 <= int(ttl) <= MAX_TTL:
            return Answer(400)
        return Answer(200, make_token(secret, me.instance, int(now) + int(ttl)).encode(), {TOKEN_TTL: ttl})
    if method not in ("GET", "HEAD"):
        return Answer(405, headers={"allow": "GET, HEAD"})
    token = headers.get(TOKEN)
    holds = not me.token_required if token is None else token_holds(token, secret, me.instance, now)
    if not holds:
        return Answer(401)
    root, _, below = path.partition("/")
    if root != "latest":
        return Answer(404) if path else Answer(200, b"latest")
    if below == "user-data":
        return Answer(200, me.user_data) if me.user_data else Answer(404)
    if below in me.documents:
        content = me.documents[below]
        return Answer(200, (content if isinstance(content, str) else content()).encode())
    if below == "meta-data/public-keys" and me.key_name:
        return Answer(200, f"0={me.key_name}".encode())
    entries = listing([*me.documents, *(["user-data"] if me.user_data else [])], below)
    return Answer(200, entries.encode()) if entries else Answer(404)
