# SPDX-License-Identifier: GPL-3.0-or-later
"""The object store as the rendezvous sees it: signs uploads for members, writes results.

PRIVATE to the collection. boto3 is the distribution's, its credentials are the host's role; members never have any. A
grant is one PUT of one key, with this size and this SHA-256 and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import typing as t

from .wire import Epoch

#: Seconds that a grant is good for.
GRANT_TIME = 3600


def s3_client(region: t.Optional[str], endpoint_url: t.Optional[str]) -> t.Any:
    """boto3's client with the host's role."""
    # Here, since only a rendezvous that needs S3 needs it, and it takes half a second. The installed command runs
    # without site-packages, which is where boto3 is.
    import site

    site.main()
    import boto3
    import botocore.config

    config = botocore.config.Config(
        signature_version="s3v4",
        # Otherwise it signs for the global address, which other regions do not answer.
        s3={"addressing_style": "path" if endpoint_url else "virtual"},
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=5,
        read_timeout=30,
    )
    try:
        # Newer versions sign a CRC32 of their own otherwise, of a body that they do not have.
        config = config.merge(botocore.config.Config(request_checksum_calculation="when_required"))
    except TypeError:
        pass  # an older one
    return boto3.session.Session().client("s3", region_name=region, endpoint_url=endpoint_url, config=config)


class Store:
    """A prefix of a bucket. Methods block, and are called from one thread."""

    def __init__(self, bucket: str, prefix: str, region: t.Optional[str], endpoint_url: t.Optional[str]) -> None:
        self._bucket = bucket
        self._prefix = prefix.strip("/")
        self._region = region
        self._endpoint_url = endpoint_url
        self._made: t.Any = None

    def _client(self) -> t.Any:
        if self._made is None:
            self._made = s3_client(self._region, self._endpoint_url)
        return self._made

    def warm(self) -> None:
        """Do once what takes long: load boto3, find credentials."""
        self._client().generate_presigned_url("get_object", Params={"Bucket": self._bucket, "Key": "x"})

    def _key(self, epoch: Epoch, *names: str) -> str:
        return "/".join([self._prefix, "trials", epoch.trial, str(epoch.attempt), *names])

    def grants(self, epoch: Epoch, member: str, files: t.Sequence[t.Mapping[str, t.Any]]) -> t.List[t.Dict[str, t.Any]]:
        """One signed PUT for each file, whose headers are part of the signature."""
        found = []
        for file in files:
            digest = base64.b64encode(binascii.unhexlify(file["sha256"])).decode("ascii")
            url = self._client().generate_presigned_url(
                "put_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": self._key(epoch, member, file["path"]),
                    "ContentLength": file["size"],
                    "ChecksumSHA256": digest,
                },
                ExpiresIn=GRANT_TIME,
            )
            headers = {"content-length": str(file["size"]), "x-amz-checksum-sha256": digest}
            found.append({"path": file["path"], "url": url, "headers": headers})
        return found

    def put_result(self, epoch: Epoch, body: bytes) -> None:
        """Write trial.json."""
        self._client().put_object(
            Bucket=self._bucket,
            Key=self._key(epoch, "trial.json"),
            Body=body,
            ContentType="application/json",
        )
