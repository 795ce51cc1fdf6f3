# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests and answers between all hosts."""
