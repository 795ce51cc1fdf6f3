# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Issues a host's certificates on the controller, then installs its agent. Documented in plugins/modules/agent.py."""

from __future__ import annotations

import datetime
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils import _tls

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
        directory = arguments.get("tls_directory")
        if arguments.get("state", "present") == "present" and directory:
            arguments.update(self._certificates(arguments, str(directory)))
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
            # Booleans come as words too (yes, "true"): the module decides; a pair that is not used is not installed.
            if str(arguments.get("rendezvous", False)).lower() in ("true", "yes", "on", "1", "y", "t"):
                served = store.rendezvous(now, expires)
                found.update(rendezvous_certificate=served.certificate, rendezvous_key=served.key)
        except _tls.TlsError as error:
            raise AnsibleActionFail(str(error)) from error
        return found


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
