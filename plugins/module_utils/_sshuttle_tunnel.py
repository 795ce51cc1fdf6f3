# SPDX-License-Identifier: GPL-3.0-or-later
"""What the service of a tunnel runs on its client. One file without others of ours, because it stays on the host.

    tunnel.py run NAME        check the routes, wait after failures, become sshuttle
    tunnel.py probe NAME      reach a private address through the tunnel; prints JSON
    tunnel.py clean NAME      remove what sshuttle leaves in the firewall, and say why the tunnel ended
    tunnel.py measure NAME S  throughput through the tunnel in both directions, for S seconds each; prints JSON

What is wrong goes to standard error in one line, and to the file ``problem`` of the service's directory below /run:
``{"kind": <one of PROBLEMS or "probe" or "route">, "text": ...}``. This util is PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing as t

ETC = "/etc/startline/vpn"
RUN = "/run/startline-vpn-{name}"
#: A file for each port that a tunnel of this host had; who has a lock on it has the port.
LOCKS = "/run/startline-vpn"

#: Seconds to wait before the next attempt, after so many failures in a row.
BACK_OFF = (0, 0, 1, 2, 4, 8, 15)
#: Seconds that a private address has to answer.
PROBE_TIMEOUT = 15
#: Seconds that a measurement may last, and for which nothing may come through while it does.
LONGEST = 3600
SILENCE = 30
#: sshuttle's own first choice, and how far to look below it.
FIRST_PORT = 12300
PORTS = 500

#: What redirects connections: sshuttle's methods by program, best first. A kernel may lack what a program needs: that of
#: user-mode Linux in Debian has nothing of nftables that redirects, so there iptables is only good in its legacy variant.
METHODS = {"nft": "nft", "iptables": "nat", "iptables-legacy": "nat"}
#: What sshuttle asks of nft. The kernel looks at it, and changes nothing.
NFT_TRIAL = """\
add table inet startline-vpn-trial
add chain inet startline-vpn-trial output { type nat hook output priority -100; }
add rule inet startline-vpn-trial output fib daddr type local return
add rule inet startline-vpn-trial output meta l4proto tcp redirect to :1
"""

#: Ends sshuttle, whose child the shell is, when ssh has ended. By itself it may not notice: when it reads the end of the
#: stream before ssh can be waited for, it waits for the next connection, which is lost. USR1 is a failure to systemd.
END = "kill -s USR1 $PPID"

#: (kind, words of ssh, what it means). The first that is found counts.
PROBLEMS = (
    (
        "host-key",
        ("Host key verification failed", "host key is known for", "REMOTE HOST IDENTIFICATION HAS CHANGED"),
        "{where} does not show a pinned host key: somebody else answers there, or the host was installed anew. Compare with "
        "/etc/ssh/ssh_host_*_key.pub on the login host, and give the right keys as host_keys",
    ),
    (
        "key",
        ("Permission denied", "Too many authentication failures"),
        "{where} refused the key of account {account}: run startline.lab.sshuttle_gateway there with the public half of this "
        "tunnel's key; if it limits clients, this host's address, as seen from there, has to be among them",
    ),
    (
        "refused",
        ("Connection refused",),
        "{where}: nobody listens there: run startline.lab.sshuttle_gateway with this port on the login host",
    ),
    (
        "silent",
        ("timed out", "No route to host", "Network is unreachable", "not responding", "Broken pipe"),
        "{where} does not answer: is the login host up, and does its firewall let in this port from here?",
    ),
    (
        "closed",
        ("Connection closed", "Connection reset", "kex_exchange_identification"),
        "{where} closed the connection: the login host went down, or has too many connections at once (MaxStartups)",
    ),
)

# Runs on the login host as the tunnel's account. First line: where it listens, as the private network sees it. Then one
# connection that is received, of which it says bytes and seconds, and one that is sent for the given time.
RECEIVER = """
import json, socket, sys, time
target, seconds = sys.argv[1], float(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as look:
    look.connect((target, 9))
    own = look.getsockname()[0]
with socket.socket() as server:
    server.bind((own, 0))
    server.listen(1)
    server.settimeout(30)
    print(json.dumps(server.getsockname()), flush=True)
    link, _ = server.accept()
    count, first = 0, None
    with link:
        link.settimeout(30)
        while True:
            data = link.recv(1 << 18)
            if not data:
                break
            first = first or time.monotonic()
            count += len(data)
        took = time.monotonic() - (first or 0)
    print(json.dumps([count, took]), flush=True)
    link, _ = server.accept()
    with link:
        link.settimeout(30)
        end, block = time.monotonic() + seconds, bytes(1 << 16)
        while time.monotonic() < end:
            link.sendall(block)
"""

Json = t.Dict[str, t.Any]
KINDS = ("networks", "exclude")


class Problem(Exception):
    """Why there is no tunnel."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


# -- decisions --------------------------------------------------------------------------------------------------------


def parse_seconds(given: t.Union[str, float]) -> float:
    """How long a measurement lasts in each direction."""
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    # What is no number at all (nan) is not above 0 either.
    if not 0 < seconds <= LONGEST:
        raise Problem("measure", f"{given} is no time to measure for: give seconds, above 0 and at most {LONGEST}")
    return seconds


def back_off(failures: int) -> int:
    """Seconds to wait before an attempt after so many failures in a row."""
    return BACK_OFF[min(failures, len(BACK_OFF) - 1)]


def explain(settings: Json, ssh_log: str) -> t.Optional[t.Tuple[str, str]]:
    """Kind and text of what ssh complains of; None when it does not complain."""
    where = f"{settings['gateway']} port {settings['port']}"
    for kind, signs, meaning in PROBLEMS:
        for line in ssh_log.splitlines():
            if any(sign in line for sign in signs):
                text = meaning.format(where=where, account=settings["account"])
                return kind, f"{text}. (ssh: {line.strip()})"
    return None


def overlaps(settings: Json, own: t.Iterable[t.Tuple[str, str]]) -> t.Optional[str]:
    """What is wrong with taking the networks into the tunnel on a host with these addresses, or None.

    Args:
        settings: the tunnel.
        own: device and address with prefix of each: ``("host0", "10.77.0.4/20")``.
    """
    exclude = [ipaddress.IPv4Network(network) for network in settings["exclude"]]
    for device, interface in own:
        address = ipaddress.IPv4Interface(interface)
        for network in map(ipaddress.IPv4Network, settings["networks"]):
            if not network.overlaps(address.network) or any(address.network.subnet_of(hole) for hole in exclude):
                continue
            taken = f"address {address.ip}" if address.ip in network else f"network {address.network}"
            return (
                f"{network} holds this host's own {taken} on {device}: give the sites different networks, or exclude "
                f"{address.network} if it holds nothing that the tunnel is for"
            )
    return None


def takes(settings: Json, address: str) -> bool:
    """Whether connections to the address go through the tunnel."""
    among = [any(ipaddress.IPv4Address(address) in ipaddress.IPv4Network(n) for n in settings[k]) for k in KINDS]
    return among == [True, False]


def arguments(settings: Json, port: int, method: str, gateway: str, log: str) -> t.List[str]:
    """The words that start sshuttle.

    Args:
        settings: the tunnel.
        port: where it listens on the loopback; also part of the names of its firewall rules.
        method: ``nft`` or ``nat``.
        gateway: IPv4 address of the login host.
        log: file for ssh's complaints.
    """
    networks = settings["networks"]
    exclude = list(settings["exclude"])
    if any(ipaddress.IPv4Address(gateway) in ipaddress.IPv4Network(network) for network in networks):
        # What makes the tunnel does not go through it.
        exclude.append(f"{gateway}:{settings['port']}")
    words = ["--method", method, "--disable-ipv6", "--listen", f"127.0.0.1:{port}"]
    words += ["--latency-buffer-size", str(settings["buffer"])]
    ssh = f"ssh -F {ETC}/{settings['name']}/ssh_config -E {log}"
    words += ["--ssh-cmd", f"sh -c '{ssh} \"$@\"; {END}' ssh", "--remote", settings["gateway"]]
    for network in exclude:
        words += ["--exclude", network]
    return ["sshuttle", *words, *networks]


def trials(program: str, chain: str) -> t.List[t.Tuple[t.List[str], str]]:
    """Commands, with what they read, that succeed where the kernel bears what sshuttle does with a program.

    `chain` is a name that nobody else has: two tunnels may start at once.
    """
    if program == "nft":
        return [(["nft", "--check", "--file", "-"], NFT_TRIAL)]
    # To list is no trial: iptables lists what the kernel refuses to make.
    return [([program, "-w", "-t", "nat", action, chain], "") for action in ("-N", "-X")]


def removal(program: str, port: int) -> t.Tuple[t.List[str], t.List[t.List[str]]]:
    """What sshuttle leaves in the firewall when it is killed: how to see that it is there, and what removes it."""
    if program == "nft":
        table = ["table", "inet", f"sshuttle-ipv4-{port}"]
        return ["nft", "list", *table], [["nft", "delete", *table]]
    chain, nat = f"sshuttle-{port}", [program, "-w", "-t", "nat"]
    jumps = [[*nat, "-D", hook, "-j", chain] for hook in ("OUTPUT", "PREROUTING")]
    return [*nat, "-n", "-L", chain], [*jumps, [*nat, "-F", chain], [*nat, "-X", chain]]


# -- the host ---------------------------------------------------------------------------------------------------------


class Service:
    """A tunnel's service on this host."""

    def __init__(self, name: str, etc: str = ETC, run: str = RUN, locks: str = LOCKS) -> None:
        with open(f"{etc}/{name}/tunnel.json", encoding="utf-8") as stream:
            self.settings: Json = json.load(stream)
        self._etc = f"{etc}/{name}"
        self._run = run.format(name=name)
        self._log = f"{self._run}/ssh.log"
        self._locks = locks

    # -- its directory --

    def _read(self, name: str) -> str:
        try:
            with open(f"{self._run}/{name}", encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except FileNotFoundError:
            return ""

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._run}/{name}", "w", encoding="utf-8") as stream:
            stream.write(text)

    def _forget(self, name: str) -> None:
        if os.path.exists(f"{self._run}/{name}"):
            os.unlink(f"{self._run}/{name}")

    def note(self, kind: str, text: str) -> None:
        """Keep why there is no tunnel."""
        self._write("problem", json.dumps({"kind": kind, "text": text}))

    # -- commands --

    def run(self) -> None:
        """Become sshuttle, which tells systemd when it is connected and its firewall rules are in force."""
        self._remove_rules()
        failures = int(self._read("failures") or 0)
        time.sleep(back_off(failures))
        self._write("failures", str(failures + 1))
        self._write("ssh.log", "")
        self._check_routes()
        try:
            gateway = socket.gethostbyname(self.settings["gateway"])
        except OSError as exc:
            raise Problem("name", f"{self.settings['gateway']}: {exc}: give the login host's address") from exc
        program = shutil.which("sshuttle")
        if program is None:
            raise Problem("missing", "there is no sshuttle here: install the package sshuttle")
        firewall = self._firewall()
        port = self._take_port()
        # A tunnel that had this port and was killed may not have removed its rules yet.
        _remove_rules(firewall, port)
        self._write("firewall", f"{firewall} {port}")
        words = arguments(self.settings, port, METHODS[firewall], gateway, self._log)
        os.execv(program, words)  # noqa: S606

    def probe(self) -> Json:
        """Reach a private address. Anybody can connect, since sshuttle accepts before it asks the login host: only what the
        far end says proves that it is there."""
        target = (self.settings["probe_address"], self.settings["probe_port"])
        ends = time.monotonic() + PROBE_TIMEOUT
        why = "nothing was said"
        while True:
            left = ends - time.monotonic()
            if left <= 0:
                break
            began = time.monotonic()
            try:
                with socket.create_connection(target, timeout=left) as connection:
                    if connection.recv(1):
                        took = time.monotonic() - began
                        self._forget("failures")
                        self._forget("problem")
                        return {"address": target[0], "port": target[1], "milliseconds": round(took * 1e3, 3)}
                    why = "the login host could not connect to it"
            except OSError as exc:
                why = str(exc)
            time.sleep(0.2)
        raise Problem(
            "probe",
            f"{target[0]} port {target[1]} does not greet through the tunnel within {PROBE_TIMEOUT} s ({why}): does a server that "
            f"speaks first, as SSH does, listen there, and let in the login host {self.settings['gateway']}?",
        )

    def clean(self) -> None:
        """Leave no rule, and say why the tunnel ended unless it was stopped."""
        self._remove_rules()
        if os.environ.get("SERVICE_RESULT", "success") == "success":
            return
        found = explain(self.settings, self._read("ssh.log"))
        if found:
            raise Problem(*found)

    def measure(self, seconds: float) -> Json:
        """Mbit/s of a TCP connection to the login host's private address, sent and received."""
        command = ["ssh", "-F", f"{self._etc}/ssh_config", self.settings["gateway"]]
        command += [f"exec python3 -c {_quote(RECEIVER)} {self.settings['probe_address']} {seconds}"]
        with tempfile.TemporaryFile() as complaints:
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints) as far:
                try:
                    return self._measure(t.cast("t.IO[bytes]", far.stdout), seconds)
                except EOFError:
                    why = "the login host's end of the measurement ended too early"
                    # What it complains of may still be on its way.
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        far.wait(timeout=5)
                except (OSError, TypeError, ValueError) as exc:
                    why = str(exc)
                finally:
                    far.kill()
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").split("\n")
        words = [line.strip() for line in said if line.strip()]
        if words:
            why = f"{why} (it said: {words[-1]})"
        raise Problem(
            "measure",
            f"the throughput was not measured: {why}. Does python3 run on the login host, and did the tunnel last meanwhile "
            f"(journalctl -u startline-vpn-{self.settings['name']})?",
        )

    def _measure(self, far: t.IO[bytes], seconds: float) -> Json:
        address, port = _next(far)
        if not takes(self.settings, address):
            raise Problem(
                "measure",
                f"the login host's private address {address} is not in networks: add it, to measure the throughput",
            )
        block = bytes(1 << 16)
        with socket.create_connection((address, port), timeout=SILENCE) as link:
            ends = time.monotonic() + seconds
            while time.monotonic() < ends:
                link.sendall(block)
            link.shutdown(socket.SHUT_WR)
            sent, took = _next(far)
        received, first, last = 0, 0.0, 0.0
        with socket.create_connection((address, port), timeout=SILENCE) as link:
            while True:
                data = link.recv(1 << 18)
                if not data:
                    break
                last = time.monotonic()
                first = first or last
                received += len(data)
        return {"sent": _mbit(sent, took), "received": _mbit(received, last - first)}

    # -- parts --

    def _check_routes(self) -> None:
        """sshuttle only meets packets that the kernel would send: without a route there are none."""
        own = []
        for link in json.loads(_output(["ip", "-j", "-4", "address"])):
            for entry in link["addr_info"]:
                own.append((link["ifname"], f"{entry['local']}/{entry['prefixlen']}"))
        problem = overlaps(self.settings, own)
        if problem:
            raise Problem("route", problem)
        for network in map(ipaddress.IPv4Network, self.settings["networks"]):
            target = str(network.network_address if network.num_addresses == 1 else network.network_address + 1)
            done = _run(["ip", "route", "get", target])
            said = done.stdout.decode("utf-8", "replace").strip()
            if done.returncode or said.split()[0] in ("unreachable", "blackhole", "prohibit"):
                raise Problem(
                    "route",
                    f"this host has no route to {target} ({said}), and sshuttle takes only what has one: add a default route",
                )

    def _firewall(self) -> str:
        """The program that sshuttle is to redirect connections with."""
        found = [program for program in METHODS if shutil.which(program)]
        said = ""
        for program in found:
            for command, text in trials(program, f"startline-vpn-{os.getpid()}"):
                done = _run(command, text)
                if done.returncode:
                    said = done.stdout.decode("utf-8", "replace").strip().partition("\n")[0]
                    break
            else:
                if METHODS[program] == "nat":
                    self._lend("iptables", program)
                return program
        have = (
            f"this kernel does not redirect with {' or '.join(found)} ({said})"
            if found
            else "there is none of them here"
        )
        raise Problem(
            "firewall", f"sshuttle needs nft or iptables, and {have}: install nftables, or take another kernel"
        )

    def _lend(self, name: str, program: str) -> None:
        """Have sshuttle find a program by a name."""
        directory, target = f"{self._run}/bin", t.cast(str, shutil.which(program))
        os.makedirs(directory, exist_ok=True)
        self._forget(f"bin/{name}")
        os.symlink(target, f"{directory}/{name}")
        os.environ["PATH"] = f"{directory}:{os.environ['PATH']}"

    def _take_port(self) -> int:
        """Where sshuttle is to listen, taken for as long as this process lives, whatever it becomes.

        The highest free one, so that it is mostly the same after a restart. A trial alone does not take it: sshuttle listens
        later, and until then another tunnel would find it free.
        """
        for port in range(FIRST_PORT, FIRST_PORT - PORTS, -1):
            lock = self._lock(port)
            if lock is None:
                continue
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    trial.bind(("127.0.0.1", port))
                except OSError:
                    os.close(lock)
                    continue
            # sshuttle gives it to no child, so that the lock ends with sshuttle.
            os.set_inheritable(lock, True)
            return port
        raise Problem(
            "port", f"no port of 127.0.0.1 from {FIRST_PORT - PORTS + 1} to {FIRST_PORT} is free for sshuttle"
        )

    def _lock(self, port: int) -> t.Optional[int]:
        """The descriptor that has the port until it is closed, None when another tunnel has it.

        Its file stays: whoever opened it before it was removed would have a lock that others do not see.
        """
        os.makedirs(self._locks, 0o700, exist_ok=True)
        lock = os.open(f"{self._locks}/{port}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def _remove_rules(self) -> None:
        """Remove what this tunnel's sshuttle left, if no tunnel has its port now: the rules would be that one's."""
        left = self._read("firewall").split()
        if not left:
            return
        lock = self._lock(int(left[1]))
        if lock is not None:
            _remove_rules(left[0], int(left[1]))
            os.close(lock)
        self._forget("firewall")


def _remove_rules(program: str, port: int) -> None:
    question, commands = removal(program, port)
    if _run(question).returncode == 0:
        for command in commands:
            subprocess.run(command, check=False)


def _next(far: t.IO[bytes]) -> t.Any:
    """What the far end of a measurement says next."""
    line = far.readline()
    if not line:
        raise EOFError
    return json.loads(line)


def _mbit(count: int, seconds: float) -> float:
    if not count or seconds <= 0:
        raise Problem("measure", "nothing came through the tunnel while its throughput was measured")
    return round(count * 8 / seconds / 1e6, 2)


def _quote(text: str) -> str:
    """One word of a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def _output(command: t.List[str]) -> bytes:
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def _run(command: t.List[str], text: str = "") -> "subprocess.CompletedProcess[bytes]":
    """Run a command; what it prints and complains of is its `stdout`."""
    return subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def main(words: t.Sequence[str]) -> int:
    """Run a command."""
    service = Service(words[1])
    try:
        if words[0] == "run":
            service.run()
        elif words[0] == "probe":
            sys.stdout.write(json.dumps(service.probe()) + "\n")
        elif words[0] == "clean":
            service.clean()
        elif words[0] == "measure":
            sys.stdout.write(json.dumps(service.measure(parse_seconds(words[2]))) + "\n")
    except Problem as problem:
        sys.stderr.write(f"{problem}\n")
        if words[0] != "measure":
            # A tunnel that is not measured is a tunnel.
            service.note(problem.kind, str(problem))
        return 0 if words[0] == "clean" else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
