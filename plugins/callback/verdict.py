# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Callback: the verdict as the last words of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: verdict
type: aggregate
short_description: Say a run's verdict after Ansible's own recap
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Prints the summary of a run (verdict, main figures, where the report is) below the recap, where a person looks.
  - The summary is the custom statistic C(startline_summary), which C(site.yml) sets; a playbook that sets none prints
    nothing.
requirements:
  - Enable it in C(ansible.cfg), V(callbacks_enabled = startline.lab.verdict).
"""

import typing as t

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "startline.lab.verdict"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Everything is over."""
        summary = stats.custom.get("_run", {}).get("startline_summary")
        if summary:
            self._display.display(str(summary))
