# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Issues a host's certificates on the controller, then installs its agent. Documented in plugins/modules/agent.py."""

from __future__ import annotations

import datetime
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils import _mailbox, _tls
from ansible_collections.startline.lab.plugins.plugin_utils._aws import AWS_ARGUMENT_SPEC, AwsOptions, is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import RequirementError

#: How long certificates are good when nobody says how long the run may last.
DEFAULT_LIFE = datetime.timedelta(days=30)

GIVEN = ("ca", "certificate", "key")


class ActionModule(ActionBase):
    """The part of startline.lab.agent that runs on the controller."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._supports_check_mode = True
        result = super().run(tmp, task_vars)
        del tmp
        arguments = dict(self._task.args)
        # Credentials stay on the controller.
        aws = AwsOptions.from_args({name: arguments.pop(name, None) for name in AWS_ARGUMENT_SPEC})
        directory = arguments.get("tls_directory")
        if arguments.get("state", "present") == "present" and directory:
            arguments.update(self._certificates(arguments, str(directory)))
            if arguments.get("mailbox_bucket") or arguments.get("transport") == "s3":
                arguments.update(self._mailboxes(arguments, str(directory), aws))
        result.update(
            self._execute_module(module_name="startline.lab.agent", module_args=arguments, task_vars=task_vars)
        )
        return result

    def _certificates(self, arguments: dict[str, t.Any], directory: str) -> dict[str, str]:
        """The module's arguments that come from the run's authority."""
        for name in ("run_id", "member"):
            if not arguments.get(name):
                raise AnsibleActionFail(f"missing required arguments: {name}")
        run_id, member = str(arguments["run_id"]), str(arguments["member"])
        now = datetime.datetime.now(datetime.UTC)
        expires = _expiry(arguments.get("expires"), now)
        store = _tls.Directory(directory, run_id, until=expires if arguments.get("expires") else None)
        try:
            own = store.member(member, now, expires)
            found = {
                "ca": store.authority(now, expires).certificate,
                "certificate": own.certificate,
                "key": own.key,
            }
            if _is_true(arguments.get("rendezvous")):
                served = store.rendezvous(now, expires)
                found.update(rendezvous_certificate=served.certificate, rendezvous_key=served.key)
        except _tls.TlsError as error:
            raise AnsibleActionFail(str(error)) from error
        return found

    def _mailboxes(self, arguments: dict[str, t.Any], directory: str, aws: AwsOptions) -> dict[str, str]:
        """The module's arguments for members that reach the rendezvous through S3."""
        for name in ("mailbox_bucket", "mailbox_prefix"):
            if not arguments.get(name):
                raise AnsibleActionFail(f"missing required arguments: {name}")
        place = _mailbox.Place(
            str(arguments["mailbox_bucket"]), str(arguments["mailbox_prefix"]), aws.region, aws.endpoint_url
        )
        made = _mailbox.Directory(directory, str(arguments["run_id"]), place)
        found = {}
        try:
            if arguments.get("transport") == "s3":
                found["mailbox"] = made.member(str(arguments["member"]), lambda: aws.client("s3"))
            if _is_true(arguments.get("rendezvous")):
                found["mailboxes"] = made.rendezvous()
        except (OSError, RequirementError) as error:
            raise AnsibleActionFail(f"no mailbox for {arguments['member']}: {error}") from error
        except Exception as error:
            if not is_aws_error(error):
                raise
            raise AnsibleActionFail(f"requests for {arguments['member']} cannot be signed: {error}") from error
        return found


def _is_true(value: t.Any) -> bool:
    """Booleans come as words too (yes, "true"): the module decides; what is not used is not installed."""
    return str(value).lower() in ("true", "yes", "on", "1", "y", "t")


def _expiry(text: t.Any, now: datetime.datetime) -> datetime.datetime:
    """When certificates made now stop being good."""
    if not text:
        return now + DEFAULT_LIFE
    try:
        found = datetime.datetime.fromisoformat(str(text))
    except ValueError as error:
        raise AnsibleActionFail(f"expires is not an ISO 8601 time: {text}") from error
    found = found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
    if found <= now:
        raise AnsibleActionFail(f"expires has passed: {text}")
    return found
