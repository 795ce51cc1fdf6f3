# SPDX-License-Identifier: GPL-3.0-or-later
"""Expansion: what a sweep becomes."""

from __future__ import annotations

import collections
import json
import pathlib
import random
import re
import typing as t

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.plugin_utils import _plan
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, PlanError, Problem
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import load_experiment

PROJECT = pathlib.Path(__file__).resolve().parents[4]

SWEEP = """
groups:
  party: {count: "{{ parties }}"}
  chain: {count: 1}
parameters: {protocol: [normal, corrupted], parties: [4, 8], at_size: 3}
command: run {{ rank }} {{ protocol }} {{ at_size }}
"""


def plan(text: str, overrides: str = "", seed: int | None = None) -> dict[str, t.Any]:
    return _plan.expand(load_experiment(text, "experiments/demo.yml", overrides), seed=seed)


def problems(text: str, overrides: str = "") -> tuple[Problem, ...]:
    with pytest.raises(ExperimentError) as caught:
        plan(text, overrides)
    return caught.value.problems


def ids(expanded: dict[str, t.Any]) -> list[str]:
    return [trial["trial_id"] for trial in expanded["trials"]]


# --- the sweep --------------------------------------------------------------------------------------------------------


def test_axes_make_a_product_and_constants_do_not() -> None:
    expanded = plan(SWEEP, "order=sequential,repeats=2")
    points = ["normal.parties-4", "normal.parties-8", "corrupted.parties-4", "corrupted.parties-8"]
    assert ids(expanded) == [f"protocol-{point}.r{repeat}" for repeat in (1, 2) for point in points]
    assert expanded["trials"][0]["point"] == {"protocol": "normal", "parties": 4}
    assert expanded["trials"][0]["parameters"] == {"protocol": "normal", "parties": 4, "at_size": 3}


def test_the_largest_fleet_is_brought_up_and_smaller_trials_use_the_first_hosts() -> None:
    expanded = plan(SWEEP, "order=sequential")
    assert expanded["groups"]["party"]["count"] == 8
    assert [m["name"] for m in expanded["members"]] == [*(f"party-{n}" for n in range(8)), "chain-0"]
    assert expanded["trials"][0]["members"] == ["party-0", "party-1", "party-2", "party-3", "chain-0"]
    assert len(expanded["trials"][1]["members"]) == 9


def test_without_an_axis_trials_are_named_by_their_repeat() -> None:
    assert ids(plan("groups: {a: {}}\ncommand: 'true'\nrepeats: 2\n")) == ["r1", "r2"]


def test_include_and_exclude() -> None:
    text = (
        SWEEP + "exclude: [{protocol: corrupted, parties: 8}]\ninclude: [{parties: 16, protocol: normal, at_size: 5}]\n"
    )
    expanded = plan(text, "order=sequential")
    assert ids(expanded) == [
        "protocol-normal.parties-4.r1",
        "protocol-normal.parties-8.r1",
        "protocol-corrupted.parties-4.r1",
        "protocol-normal.parties-16.at_size-5.r1",
    ]
    assert expanded["trials"][-1]["parameters"]["at_size"] == 5
    assert expanded["groups"]["party"]["count"] == 16


def test_an_exclusion_may_name_some_axes_only() -> None:
    expanded = plan(SWEEP + "exclude: [{protocol: corrupted}]\n")
    assert {trial["point"]["protocol"] for trial in expanded["trials"]} == {"normal"}


def test_warmups_come_first_and_are_marked() -> None:
    expanded = plan(SWEEP, "warmups=1,repeats=1")
    assert [trial["warmup"] for trial in expanded["trials"]] == [True] * 4 + [False] * 4
    assert {trial_id.rpartition(".")[2] for trial_id in ids(expanded)[:4]} == {"w1"}


def test_the_order_is_random_in_blocks_by_the_seed() -> None:
    one, same, other = (
        plan(SWEEP, "repeats=8", seed=1),
        plan(SWEEP, "repeats=8", seed=1),
        plan(SWEEP, "repeats=8", seed=2),
    )
    assert ids(one) == ids(same)
    assert ids(one) != ids(other)
    assert sorted(ids(one)) == sorted(ids(other))
    blocks = [[trial["repeat"] for trial in one["trials"][n : n + 4]] for n in range(0, 32, 4)]
    assert blocks == [[n] * 4 for n in range(1, 9)]
    orders = {tuple(trial_id.rpartition(".")[0] for trial_id in ids(one)[n : n + 4]) for n in range(0, 32, 4)}
    assert len(orders) > 1, "each block is shuffled for itself"


def test_the_seed_is_recorded_and_can_come_from_the_command() -> None:
    assert plan(SWEEP, "seed=7")["seed"] == 7
    assert plan(SWEEP, "seed=7", seed=9)["seed"] == 9


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addition", "path", "message"),
    [
        ("exclude: [{protocol: normal}, {protocol: corrupted}]", "exclude", "leaves no point"),
        ("exclude: [{protocol: normal}, {protocol: normal, parties: 4}]", "exclude[1]", "excludes no point"),
        ("include: [{protocol: normal, parties: 4}]", "include[0]", "already"),
        ("repeats: 2501", "parameters", "10,004 trials (2 protocol x 2 parties, x 2501 repeats); 10,000 is the limit"),
        ("expires_after: 10m", "expires_after", "would power off before the end"),
    ],
)
def test_impossible_sweeps(addition: str, path: str, message: str) -> None:
    (found,) = problems(f"{SWEEP}{addition}\n")
    assert (found.path, found.line) == (path, 7 if path != "parameters" else 5)
    assert message in found.message


def test_a_sweep_of_many_axes_is_refused_before_it_is_made() -> None:
    axes = ", ".join(f"a{n}: {list(range(100))}" for n in range(9))
    command = " ".join(f"{{{{ a{n} }}}}" for n in range(9))
    (found,) = problems(f"groups: {{g: {{}}}}\nparameters: {{{axes}}}\ncommand: echo {command}\n")
    assert "1,000,000,000,000,000,000 trials" in found.message


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("{{ parties - 4 }}", "is '0' at protocol=normal, parties=4"),
        ("{{ parties / 2 }}", "is '2.0' at protocol=normal, parties=4"),
        ("{{ protocol ~ parties }}", "is 'normal4' at"),
        ("{{ parties // 0 }}", "fails at protocol=normal, parties=4: integer division or modulo by zero"),
    ],
)
def test_counts_that_are_no_counts_name_the_point(count: str, message: str) -> None:
    found = problems(SWEEP, f"groups.party.count='{count}',exclude=[{{protocol: corrupted}}]")
    assert (found[0].file, found[0].path) == ("-e set", "groups.party.count")
    assert message in found[0].message


def test_fleets_that_no_network_holds() -> None:
    (found,) = problems(SWEEP + "sites: {us: {cidr: 10.0.0.0/28}}\n", "groups.chain.count=4")
    assert (found.path, found.line) == ("sites.us.cidr", 7)
    assert "12 hosts do not fit into 10.0.0.0/28" in found.message
    assert "room for 11" in found.message
    (found,) = problems(SWEEP, "groups.chain.count=10000")
    assert found.path == "groups.chain.count"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("echo {{ protocol }} {{ hosts[6].address }}", "(trial protocol-normal.parties-4.r1, party-0)"),
        ("echo {{ hosts[0].adress }}", "'dict object' has no attribute 'adress'"),
        ("echo {{ hosts }}", "a list has no text"),
        ("echo {{ rank + 'x' }}", "unsupported operand"),
        ("echo {{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include 'x' %}", "no loader"),
    ],
)
def test_templates_that_fail_on_hosts_fail_in_the_plan(command: str, message: str) -> None:
    key = "command" if "hosts[6]" in command else "groups.chain.command"
    found = problems(SWEEP, f'order=sequential,{key}="{command}"')
    assert message in str(found[0])


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_a_site_may_have_a_transport_of_its_own() -> None:
    expanded = plan(
        "sites: {near: {}, far: {transport: s3}}\ngroups: {a: {site: near}, b: {site: far}}\ncommand: run\n"
    )
    assert {name: site["transport"] for name, site in expanded["sites"].items()} == {"near": "tcp", "far": "s3"}
    expanded = plan(
        "sites: {near: {transport: tcp}, far: {}}\ngroups: {a: {site: near}, b: {site: far}}\n"
        "command: run\nbarrier: {transport: s3}\n"
    )
    assert {name: site["transport"] for name, site in expanded["sites"].items()} == {"near": "tcp", "far": "s3"}


def test_the_plan_has_what_the_stages_read() -> None:
    expanded = plan(
        SWEEP + "sites: {us: {region: us-east-1}}\nuser: admin\nenvironment: {A: 1}\n"
        "runtime: {packages: [b, a, b]}\nartifacts: [{src: ../w/x}, {src: y.jar, dest: z, groups: [chain]}]\n"
        "collect: ['*.log']\n"
    )
    assert expanded["format"] == "startline-plan/1"
    assert expanded["sites"] == {
        "us": {"region": "us-east-1", "cidr": "10.77.0.0/16", "transport": "tcp", "gateway": None}
    }
    assert expanded["groups"]["chain"] == {
        "site": "us",
        "count": 1,
        "instance_type": "t3a.medium",
        "image": None,
        "volume_size": 8,
        "command": "run {{ rank }} {{ protocol }} {{ at_size }}",
        "environment": {"A": "1"},
        "user": "admin",
    }
    assert expanded["rendezvous"] == "party-0"
    assert expanded["runtime"] == {"packages": ["b", "a"]}
    assert expanded["artifacts"] == [
        {"src": "w/x", "dest": "x", "groups": ["party", "chain"]},
        {"src": "experiments/y.jar", "dest": "z", "groups": ["chain"]},
    ]
    assert expanded["barrier"] == {
        "deadline": 60,
        "grace": 10,
        "on_early_exit": "continue",
        "max_clock_error": 0.05,
        "on_clock_error": "mark",
    }
    assert json.loads(json.dumps(expanded)) == expanded


@pytest.mark.parametrize(
    ("groups", "key", "rendezvous"),
    [
        ("a: {}, b: {}", "", "a-0"),
        ("a: {}, coordinator: {}", "", "coordinator-0"),
        ("a: {}, b: {}", "rendezvous: b", "b-0"),
    ],
)
def test_the_rendezvous(groups: str, key: str, rendezvous: str) -> None:
    assert plan(f"groups: {{{groups}}}\ncommand: 'true'\n{key}\n")["rendezvous"] == rendezvous


def test_quorum_and_spares_by_trial() -> None:
    text = """
groups: {party: {count: "{{ n }}", spares: 2}, chain: {}}
parameters: {n: [3, 8]}
command: run {{ n }}
order: sequential
barrier: {quorum: 75%, deadline: 10s}
timeout: 20
"""
    expanded = plan(text)
    small, large = expanded["trials"]
    assert expanded["groups"]["party"]["count"] == 10
    assert len(expanded["members"]) == 11
    assert (small["spares"], small["least"]) == (["party-3", "party-4"], {"party": 3, "chain": 1})
    assert (large["spares"], large["least"]) == (["party-8", "party-9"], {"party": 6, "chain": 1})
    assert expanded["worst_case"] == 600 + 2 * (2 * 10 + 20 + 30)
    shown = _plan.summary(expanded)
    assert "4 hosts, 2 spare" in shown
    assert "9 hosts, 2 spare, 7 at least" in shown


@pytest.mark.parametrize(
    ("quorum", "least"), [("66.7%", 3), ("1%", 1), ("100%", 4), ("{a: 2}", 2), ("{b: 1}", 4), ("{a: 50%}", 2)]
)
def test_how_few_may_start(quorum: str, least: int) -> None:
    expanded = plan(f"groups: {{a: {{count: 4}}, b: {{}}}}\ncommand: x\nbarrier: {{quorum: {quorum}}}\n")
    assert expanded["trials"][0]["least"]["a"] == least


def test_a_quorum_that_a_point_cannot_meet() -> None:
    text = "groups: {a: {count: '{{ n }}'}}\nparameters: {n: [2, 4]}\ncommand: x {{ n }}\nbarrier: {quorum: 3}\n"
    with pytest.raises(ExperimentError, match=r"barrier\.quorum: 3 of a are more than it has at n=2: 2"):
        plan(text)


def test_a_template_that_fails_for_a_quorum_fails_in_the_plan() -> None:
    text = "groups: {a: {count: 4}}\ncommand: x {{ hosts[3].address }}\n"
    assert plan(text)["trials"]
    with pytest.raises(ExperimentError, match="no element 3"):
        plan(text + "barrier: {quorum: 3}\n")


def test_expiry_leaves_room_for_the_worst_case() -> None:
    expanded = plan(SWEEP, "repeats=10,timeout=10m")
    assert expanded["worst_case"] == 600 + 40 * (60 + 600 + 30)
    assert expanded["expires_after"] == 2 * expanded["worst_case"] + 3600
    assert plan(SWEEP, "expires_after=2d")["expires_after"] == 2 * 86400


def test_the_digest_is_of_the_content_alone() -> None:
    one = plan(SWEEP)
    elsewhere = _plan.expand(load_experiment(SWEEP, "/elsewhere/demo.yml"))
    assert one["digest"] == elsewhere["digest"]
    assert one["digest"] != plan(SWEEP, "timeout=121")["digest"]
    assert one["digest"] != plan(SWEEP, seed=5)["digest"]


def _shuffled(data: t.Any, chance: random.Random) -> t.Any:
    if isinstance(data, dict):
        items = [(key, _shuffled(value, chance)) for key, value in data.items()]
        chance.shuffle(items)
        return dict(items)
    return [_shuffled(item, chance) for item in data] if isinstance(data, list) else data


@given(st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(chance: random.Random) -> None:
    expanded = plan(SWEEP)
    again = _shuffled(expanded, chance)
    _plan.check_plan(again)
    assert _plan.digest(again) == expanded["digest"]


def test_a_plan_that_was_changed_is_refused() -> None:
    changed = {**plan(SWEEP), "timeout": 5}
    with pytest.raises(PlanError, match="changed after it was made"):
        _plan.check_plan(changed)
    for foreign in ({**changed, "format": "startline-plan/0"}, {}, None, "text"):
        with pytest.raises(PlanError, match="startline-plan/1 is needed"):
            _plan.check_format(foreign)


@pytest.mark.parametrize(
    ("cidr", "gateway", "subnets"),
    [
        ("10.77.0.0/16", None, ["10.77.0.0/20"]),
        ("10.77.0.0/24", None, ["10.77.0.0/24"]),
        ("10.77.0.0/16", "login-0", ["10.77.0.0/20", "10.77.16.0/20"]),
        ("10.77.0.0/20", "login-0", ["10.77.0.0/21", "10.77.8.0/21"]),
        ("10.77.0.0/27", "login-0", ["10.77.0.0/28", "10.77.0.16/28"]),
    ],
)
def test_subnets_leave_room_in_the_network(cidr: str, gateway: str | None, subnets: list[str]) -> None:
    assert [str(subnet) for subnet in _plan.site_subnets({"cidr": cidr, "gateway": gateway})] == subnets


SITES = """
command: run
sites:
  us: {region: us-east-1}
  eu: {region: eu-central-1}
  lab: {region: us-west-2, gateway: login}
groups:
  a: {site: us, count: 2}
  b: {site: eu, count: 2}
  login: {site: lab}
  work: {site: lab, count: 3}
"""


def test_a_private_site_names_its_gateway() -> None:
    expanded = plan(SITES)
    assert {name: site["gateway"] for name, site in expanded["sites"].items()} == {
        "us": None,
        "eu": None,
        "lab": "login-0",
    }
    assert (expanded["addresses"], plan(SITES + "addresses: private\n")["addresses"]) == ("auto", "private")
    lab = expanded["sites"]["lab"]
    assert [name for name in ("login", "work") if _plan.behind_gateway(lab, name)] == ["work"]
    assert "gateway" in next(line for line in _plan.summary(expanded).splitlines() if " login " in line)


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        # eu lets in what is in us (57), and the lab's login host and NAT gateway.
        ("groups.a.count=57", "sites.eu", "59 public addresses are to be let in"),
        ("groups.a.count=56", None, ""),
        # Behind a gateway, 200 hosts are one address.
        ("groups.work.count=200", None, ""),
        # All hosts come from outside, where they are told public addresses.
        ("groups.a.count=55,addresses=public", "sites.us", "59 public addresses are to be let in"),
        ("sites.lab.cidr=10.77.0.0/27,sites.us.cidr=10.99.0.0/16,groups.work.count=12", "sites.lab.cidr", "12 hosts"),
        ("sites.lab.cidr=10.77.0.0/27,sites.us.cidr=10.99.0.0/16,groups.login.count=11", "sites.lab.cidr", "12 hosts"),
        ("sites.lab.cidr=10.77.0.0/27,sites.us.cidr=10.99.0.0/16,groups.login.count=10", None, ""),
    ],
)
def test_sites_that_aws_would_not_take_are_refused(changes: str, path: str | None, message: str) -> None:
    if path is None:
        plan(SITES, changes)
        return
    with pytest.raises(ExperimentError) as caught:
        plan(SITES, changes)
    assert path in [problem.path for problem in caught.value.problems]
    assert message in str(caught.value)


# --- properties -------------------------------------------------------------------------------------------------------

_SCALARS = (
    st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=40).filter(
        lambda s: "{" not in s
    )
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.booleans()
)
_AXES = st.dictionaries(
    st.sampled_from(["alpha", "beta", "Gamma"]),
    st.lists(
        _SCALARS,
        min_size=1,
        max_size=4,
        unique_by=lambda v: str(v).casefold() if not isinstance(v, bool) else str(v).lower(),
    ),
    max_size=3,
)


@settings(deadline=None)
@given(axes=_AXES, repeats=st.integers(1, 3), warmups=st.integers(0, 2), seed=st.integers(0, 2**32))
def test_trial_ids_are_unique_and_safe_and_expansion_is_deterministic(
    axes: dict[str, list[t.Any]], repeats: int, warmups: int, seed: int
) -> None:
    data = {
        "groups": {"g": {}},
        "parameters": axes,
        "command": "echo " + " ".join(f"{{{{ {name} | quote }}}}" for name in axes),
        "repeats": repeats,
        "warmups": warmups,
    }
    text = json.dumps(data, ensure_ascii=False)  # JSON is YAML
    one, two = plan(text, seed=seed), plan(text, seed=seed)
    assert one == two
    points = 1
    for values in axes.values():
        points *= len(values)
    names = ids(one)
    assert len(names) == points * (repeats + warmups)
    assert len({name.casefold() for name in names}) == len(names)
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)
        assert len(name) <= _plan.MAX_TRIAL_ID
    uses = collections.Counter(_plan.canonical([t_["point"], t_["repeat"], t_["warmup"]]) for t_ in one["trials"])
    assert set(uses.values()) == {1}, "every point once a block"


def test_long_and_alike_names_are_told_apart() -> None:
    values = [f"{'x' * 100}{n}" for n in range(3)] + ["a b", "a/b", "A b"]
    text = json.dumps({"groups": {"g": {}}, "parameters": {"v": values}, "command": "echo {{ v | quote }}"})
    names = ids(plan(text, "order=sequential"))
    assert len(set(names)) == 6
    assert re.fullmatch(r"v-x{63}-[0-9a-f]{6}\.r1", names[0])
    assert re.fullmatch(r"v-a-b-[0-9a-f]{6}\.r1", names[3])


# --- for people -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.2, "1 min"), (61, "1 min 1 s"), (7200, "2 h"), (90061, "1 d 1 h")]
)
def test_seconds_as_people_say_them(seconds: float, text: str) -> None:
    assert _plan.describe_seconds(seconds) == text


def test_the_summary() -> None:
    text = _plan.summary(plan(SWEEP + "description: A sweep\n", "repeats=3,warmups=1,sites={us: {region: us-east-1}}"))
    assert text.splitlines() == [
        "demo: A sweep",
        "",
        "Hosts: 9",
        "  8  party  t3a.medium  us (us-east-1)  rendezvous",
        "  1  chain  t3a.medium  us (us-east-1)",
        "",
        "Trials: 12 and 4 warm-ups, order: random within each repeat, seed 0",
        "  3 x  protocol=corrupted, parties=4  5 hosts",
        "  3 x  protocol=corrupted, parties=8",
        "  3 x  protocol=normal, parties=4     5 hosts",
        "  3 x  protocol=normal, parties=8",
        "",
        "Longest time: 1 h 6 min (9.9 host-hours); hosts power themselves off after 3 h 12 min.",
        text.splitlines()[-1],
    ]


def test_the_summary_says_whose_kernel_needs_netem() -> None:
    text = _plan.summary(plan(SWEEP + "network: {party: {chain: {delay: 40ms, oneway: true}, party: {rate: 5mbit}}}\n"))
    assert "rendezvous, needs netem" in text.splitlines()[3]
    assert "netem" not in text.splitlines()[4]


@pytest.mark.parametrize("path", sorted((PROJECT / "experiments").glob("*.yml")), ids=lambda path: path.stem)
def test_the_committed_experiments_are_plans(path: pathlib.Path) -> None:
    """With networks that are possible, where they have one."""
    source = str(path.relative_to(PROJECT))
    expanded = _plan.expand(load_experiment(path.read_text(encoding="utf-8"), source))
    assert expanded["trials"]
    assert {trial["network"] for trial in expanded["trials"]} - {None} == set(expanded["networks"])
