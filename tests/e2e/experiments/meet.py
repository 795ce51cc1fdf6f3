# SPDX-License-Identifier: GPL-3.0-or-later
"""On every host of a trial: be there for the others, and go to each of them at its address in hosts.config.

Leaves met.json: the address of each, and of those that were reached the name they gave and the address they saw us come
from.
"""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys
import threading

PORT = 9000
PATIENCE = 3.0


def serve(listener: socket.socket, name: str) -> None:
    while True:
        connection, (address, _port) = listener.accept()
        with connection:
            connection.sendall(json.dumps([name, address]).encode())


def meet(address: str) -> list[str] | None:
    try:
        with socket.create_connection((address, PORT), timeout=PATIENCE) as connection, connection.makefile() as answer:
            return json.load(answer)
    except OSError:
        return None


def main(rank: int, names: list[str]) -> None:
    addresses = pathlib.Path("hosts.config").read_text().split()
    listener = socket.create_server(("", PORT))
    threading.Thread(target=serve, args=(listener, names[rank]), daemon=True).start()
    subprocess.run(["startline-agent", "wait", "listening"], check=True)
    told = dict(zip(names, addresses, strict=True))
    met = {name: meet(address) for name, address in told.items()}
    pathlib.Path("met.json").write_text(json.dumps({"addresses": told, "met": met}))
    subprocess.run(["startline-agent", "wait", "met"], check=True)


main(int(sys.argv[1]), sys.argv[2:])
