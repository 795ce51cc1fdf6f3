# SPDX-License-Identifier: GPL-3.0-or-later
"""Any-trust distributed key generation: the arithmetic (vss), the protocol (protocol), the wires (net)."""
