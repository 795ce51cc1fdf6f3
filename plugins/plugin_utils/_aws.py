# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients of AWS for the core's I/O, made from the options that amazon.aws knows.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import dataclasses
import typing as t

from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError

#: Options of every action that talks to AWS; documented once in plugins/doc_fragments/aws.py.
AWS_ARGUMENT_SPEC: t.Final[dict[str, dict[str, t.Any]]] = {
    "region": {"type": "str"},
    "endpoint_url": {"type": "str"},
    "access_key": {"type": "str"},
    "secret_key": {"type": "str", "no_log": True},
    "session_token": {"type": "str", "no_log": True},
}


def is_aws_error(exc: BaseException) -> bool:
    """Whether boto3 or botocore raised `exc`: AWS refused, could not be reached, or there are no credentials.

    By the name of its package, because botocore raises classes that it makes at run time, and because an action
    must not import boto3 only to name its errors.
    """
    return any(cls.__module__.partition(".")[0] in ("boto3", "botocore") for cls in type(exc).__mro__)


def is_refusal(exc: BaseException) -> bool:
    """Whether AWS does not let us do that here: a region that an organisation's policy closes, for example."""
    response = getattr(exc, "response", None)
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return code in ("UnauthorizedOperation", "AccessDenied", "OptInRequired", "AuthFailure")


@dataclasses.dataclass(frozen=True)
class AwsOptions:
    """Where AWS is and who asks. What is ``None`` is left to boto3's chain."""

    region: str | None = None
    endpoint_url: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    session_token: str | None = None

    @classmethod
    def from_args(cls, args: t.Mapping[str, t.Any]) -> AwsOptions:
        """Take the AWS options out of an action's validated arguments."""
        return cls(**{field.name: args.get(field.name) for field in dataclasses.fields(cls)})

    def client(self, service: str, region: str | None = None) -> t.Any:
        """A boto3 client of `service` in `region`, or in the options' own region.

        Retries are boto3's standard mode: throttling and passing faults are retried with back-off and jitter,
        refusals are not.

        Raises:
            RequirementError: there is no boto3.
        """
        try:
            import boto3  # imported here: an action that fails on its arguments need not wait for it
            import botocore.config
        except ImportError as exc:
            raise RequirementError("AWS", exc) from exc

        return boto3.client(
            service,
            region_name=region or self.region,
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            aws_session_token=self.session_token,
            config=botocore.config.Config(
                # Without it boto3 may still sign addresses the old way, which binds neither size nor checksum.
                signature_version="s3v4" if service == "s3" else None,
                # And for the global address, which buckets of other regions do not answer.
                s3={"addressing_style": "path" if self.endpoint_url else "virtual"},
                retries={"mode": "standard", "max_attempts": 6},
                max_pool_connections=32,
                connect_timeout=10,
            ),
        )
