# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that measures from a host, with the real tools on a kernel that has netem; and what can go wrong with it."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

from ansible_collections.startline.lab.plugins.module_utils._agent import cli, probe
from ansible_collections.startline.lab.plugins.plugin_utils import _network_check as check
from ansible_collections.startline.lab.plugins.plugin_utils import _plan
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment
from ansible_collections.startline.lab.tests.support import uml

#: Two members, each in its namespace, carry out the checks of the plan: without rules, then with those of each network.
PROGRAM = """
import ctypes, json, os, traceback
from ansible_collections.startline.lab.plugins.module_utils._agent import probe
from ansible_collections.startline.lab.plugins.module_utils._netem import DEFAULT_EXEMPT, parse_exemptions, parse_rules
from ansible_collections.startline.lab.plugins.module_utils._netem_host import Host

def run(command, text):
    p = subprocess.run(command, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return p.returncode, p.stdout, p.stderr

def member(namespace, name, rules, out, come, wait):
    with open("/run/netns/" + namespace) as file:
        assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    sh("umount -l /sys && mount -t sysfs sys /sys")
    Host(run, "/run/netem-" + namespace).ensure(parse_rules(rules), parse_exemptions(DEFAULT_EXEMPT), 0)
    def meet(limit):
        os.write(come, b".")
        assert os.read(wait, 1)
    with open(out, "w") as file:
        json.dump(probe.run("/run/probes.json", name, meet), file)

for work in WORK:
    with open("/run/probes.json", "w") as file:
        file.write(work["program"])
    (a, b), (c, d) = os.pipe(), os.pipe()
    pids = []
    for namespace, name, ends in (("a", "x-0", (b, c)), ("b", "x-1", (d, a))):
        pid = os.fork()
        if pid == 0:
            try:
                for end in {a, b, c, d}.difference(ends):
                    os.close(end)
                ctypes.CDLL(None).unshare(0x20000)
                member(namespace, name, work["rules"][name], "/run/" + name, *ends)
            except BaseException:
                traceback.print_exc(file=sys.stdout)
                sys.stdout.flush()
            os._exit(0)
        pids.append(pid)
    for end in (a, b, c, d):
        os.close(end)
    for pid in pids:
        os.waitpid(pid, 0)
    print(json.dumps({name: open("/run/" + name).read() for name in ("x-0", "x-1")}))
"""

HOSTS = {"x-0": {"address": "10.9.0.1"}, "x-1": {"address": "10.9.0.2"}}


def planned(network: str) -> dict[str, t.Any]:
    # How accurate it is on a machine of its own is for benchmarks/netem_accuracy.py; here others have its processors too.
    tolerance = "network_check: {tolerance: {rtt: 25%, jitter: 100%, rate: 40%, loss: 2%}}\n"
    text = f"groups: {{x: {{count: 2}}}}\ncommand: run\nnetwork: {{x: {{x: {network}}}}}\n{tolerance}"
    return _plan.expand(load_experiment(text, "experiments/demo.yml"))


def work(plan: dict[str, t.Any], entry: dict[str, t.Any]) -> dict[str, t.Any]:
    composed = check.compose_check(plan, entry, HOSTS, run_id="run", attempt=1, evidence=None)
    rules: dict[str, list[dict[str, t.Any]]] = {}
    for member in composed["members"]:
        phases = composed["networks"][member["network"]]["phases"] if "network" in member else [{"rules": []}]
        own = member.get("addresses", ())
        rules[member["name"]] = [{**r, "to": [a for a in r["to"] if a not in own]} for r in phases[0]["rules"]]
    return {"program": composed["files"][check.PROGRAM], "rules": rules}


@pytest.mark.skipif(bool(uml.missing()), reason=uml.missing())
def test_what_is_asked_for_is_measured_on_a_kernel_that_has_netem() -> None:
    plans = [planned("{rtt: 40ms, jitter: 2ms, loss: 1%}"), planned("{rtt: 20ms, rate: 8mbit}")]
    baseline, first = plans[0]["checks"]
    second = plans[1]["checks"][1]
    jobs = [work(plans[0], baseline), work(plans[0], first), work(plans[1], second)]
    bare: dict[str, str] = {}

    def judged(plan: dict[str, t.Any], entry: dict[str, t.Any], said: dict[str, str]) -> dict[str, t.Any]:
        before = check.read_outputs(check.probes_of(baseline), bare, {})
        return check.judge_check(plan, entry, check.read_outputs(check.probes_of(entry), said, {}), before, attempt=1)

    for _attempt in range(3):  # what is off is measured once more in a run, too: others may have taken the processor
        lines = uml.run(f"WORK = {jobs!r}\n{PROGRAM}").splitlines()
        bare, *outputs = [json.loads(line) for line in lines[-3:]]
        reports = [judged(*each) for each in zip(plans, (first, second), outputs, strict=True)]
        if all(report["verdict"] == "valid" for report in reports):
            break
    assert [report["reasons"] for report in reports] == [[], []]
    report = reports[-1]
    assert [metric["metric"] for metric in report["pairs"][0]["metrics"]] == ["rtt", "loss", "rate"]
    assert [metric["metric"] for metric in report["pairs"][1]["metrics"]] == ["rate"]
    nothing = judged(plans[0], first, bare)
    assert nothing["verdict"] == "degraded"
    assert "x-0 to x-1: rtt: 40 ms asked" in nothing["reasons"][0]


def carry_out(tmp_path: pathlib.Path, **own: t.Any) -> list[dict[str, t.Any]]:
    """The results of a member with these servers and steps."""
    program = {"format": probe.FORMAT, "ready": 5, "members": {"a-0": {"servers": [], "steps": [], "until": 0, **own}}}
    path = tmp_path / "probes.json"
    path.write_text(json.dumps(program))
    found = probe.run(str(path), "a-0", lambda _limit: None)
    assert (found["format"], found["member"]) == ("startline-probe/1", "a-0")
    results: list[dict[str, t.Any]] = found["results"]
    return results


def step(*command: str, **more: t.Any) -> dict[str, t.Any]:
    return {"kind": "ping", "targets": {}, "at": 0, "limit": 20, "command": list(command), **more}


def test_each_step_says_what_it_came_to_whatever_becomes_of_the_others(tmp_path: pathlib.Path) -> None:
    missing, ended, failed, good = carry_out(
        tmp_path,
        steps=[
            step("/no/such/tool"),
            step("sh", "-c", "echo so far; exec sleep 60", limit=0.5),
            step("sh", "-c", "echo wrong >&2; exit 3"),
            step("echo", "fine", at=0.05, kind="rate"),
        ],
    )
    assert (missing["problem"], missing["code"]) == ("cannot run /no/such/tool: No such file or directory", None)
    assert (ended["problem"], ended["output"]) == ("sh was still running after 0.5 s and was ended", "so far\n")
    assert (failed["problem"], failed["code"], failed["errors"]) == (None, 3, "wrong\n")
    assert (good["output"], good["code"], good["kind"]) == ("fine\n", 0, "rate")
    assert good["began"] >= 0.05


#: A server that notes its process and serves one client: whoever makes the file.
SERVER = "echo $$ > {0}/pid; echo Server listening; until [ -e {0}/client ]; do sleep 0.02; done; touch {0}/served"


def test_servers_listen_before_the_others_are_met_and_live_until_they_have_served(tmp_path: pathlib.Path) -> None:
    servers = [["sh", "-c", SERVER.format(tmp_path)], ["/no/such/server"], ["sh", "-c", "echo cannot bind; exit 1"]]
    client = step("sh", "-c", f"test -e {tmp_path}/pid && (sleep 0.3; touch {tmp_path}/client) > /dev/null 2>&1 &")
    (result,) = carry_out(tmp_path, servers=servers, steps=[client], until=20)
    assert result["code"] == 0
    assert (tmp_path / "served").exists()


def test_a_server_that_nobody_came_to_is_ended_with_all_it_started(tmp_path: pathlib.Path) -> None:
    carry_out(tmp_path, servers=[["sh", "-c", SERVER.format(tmp_path)]], until=0.2)
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not say what a-9 has to probe"),
        ("{", "does not say what a-9 has to probe"),
        ('{"format": "startline-probes/9"}', "has the format startline-probes/9, not startline-probes/1"),
        ('{"format": "startline-probes/1", "ready": 1, "members": {}}', "does not say what a-9 has to probe"),
    ],
)
def test_a_file_that_says_nothing_of_a_member(
    tmp_path: pathlib.Path, text: str | None, words: str, capsys: t.Any, monkeypatch: t.Any
) -> None:
    path = tmp_path / "probes.json"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("STARTLINE_MEMBER", "a-9")
    assert cli.main(["probe", str(path)]) == 1
    assert words in capsys.readouterr().err


def test_outside_a_trial_there_is_nobody_to_meet(tmp_path: pathlib.Path) -> None:
    (tmp_path / "probes.json").write_text(
        '{"format": "startline-probes/1", "ready": 1, "members": {"": {"servers": [], "steps": [], "until": 0}}}'
    )
    root = pathlib.Path(probe.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "_agent.cli", "probe", "probes.json"],
        cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "this is not the command of a trial" in done.stderr
