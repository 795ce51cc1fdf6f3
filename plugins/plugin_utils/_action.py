# SPDX-License-Identifier: GPL-3.0-or-later
"""The frame of an action that does its work on the controller: arguments in, one call of the core, result out.

The one file here that knows Ansible; the rest of plugin_utils is the core. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.startline.lab.plugins.plugin_utils._aws import is_aws_error
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, StartlineError

Arguments = dict[str, t.Any]
Result = dict[str, t.Any]


class ControllerAction(ActionBase):  # type: ignore[misc]  # ansible-core has no types
    """An action whose `perform` gets checked arguments and gives the task's result.

    Errors that the core raises on purpose, those of AWS and those of files become the task's failure; what else is
    raised is a defect, and shows itself as one.
    """

    _requires_connection = False
    TRANSFERS_FILES = False

    ARGUMENT_SPEC: t.ClassVar[dict[str, t.Any]]
    REQUIRED_IF: t.ClassVar[t.Sequence[tuple[t.Any, ...]]] = ()

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> Result:
        """Check the arguments, `perform`, translate what fails."""
        self._supports_check_mode = True
        result: Result = super().run(tmp, task_vars)
        del tmp
        _valid, args = self.validate_argument_spec(argument_spec=self.ARGUMENT_SPEC, required_if=self.REQUIRED_IF)
        try:
            return {**result, **self.perform(args)}
        except ExperimentError as exc:
            # Each problem by itself too, for tools that show them where they are.
            return {**result, "failed": True, "msg": str(exc), "problems": [one.as_dict() for one in exc.problems]}
        except StartlineError as exc:
            raise AnsibleActionFail(str(exc)) from exc
        except OSError as exc:
            raise AnsibleActionFail(f"{exc.filename or self.subject(args)}: {exc.strerror or exc}") from exc
        except Exception as exc:
            if not is_aws_error(exc):
                raise
            raise AnsibleActionFail(f"{self.subject(args)}: {exc}") from exc

    def perform(self, args: Arguments) -> Result:
        """Do the task. `self._task.check_mode` says whether it may change anything."""
        raise NotImplementedError

    def subject(self, args: Arguments) -> str:
        """What the task is about, for the message about an error that does not say it."""
        raise NotImplementedError
