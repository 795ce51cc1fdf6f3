# SPDX-License-Identifier: GPL-3.0-or-later
"""The experiment file: what is accepted, and what is said about the rest."""

from __future__ import annotations

import json
import pathlib
import re
import typing as t

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.plugin_utils import _document, _experiment, _plan, _template
from ansible_collections.startline.lab.plugins.plugin_utils._errors import ExperimentError, Problem
from ansible_collections.startline.lab.plugins.plugin_utils._experiment import Experiment, load_experiment

ROOT = pathlib.Path(__file__).parents[4]
SOURCE = "experiments/demo.yml"
MINIMAL = "groups: {party: {count: 2}}\ncommand: echo {{ rank }}\n"


def load(text: str, overrides: str = "", **kwargs: t.Any) -> Experiment:
    return load_experiment(text, SOURCE, overrides, **kwargs)


def problems(text: str, overrides: str = "", **kwargs: t.Any) -> tuple[Problem, ...]:
    with pytest.raises(ExperimentError) as caught:
        load(text, overrides, **kwargs)
    return caught.value.problems


def only(text: str, overrides: str = "", **kwargs: t.Any) -> Problem:
    found = problems(text, overrides, **kwargs)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


# --- what is accepted -------------------------------------------------------------------------------------------------


def test_a_minimal_experiment_has_defaults() -> None:
    experiment = load(MINIMAL)
    assert experiment.name == "demo"
    assert experiment.spec.repeats == 1
    assert experiment.spec.timeout == 120
    assert experiment.spec.groups["party"].count == 2
    assert experiment.spec.barrier.max_clock_error == 0.05


def test_axes_and_constants() -> None:
    experiment = load(MINIMAL + "parameters: {a: [1, 2], b: x}\nenvironment: {A: '{{ a }}'}\n")
    assert experiment.axes == {"a": [1, 2]}
    assert experiment.constants == {"b": "x"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120", 120), ("2m", 120), ("1.5h", 5400), ("500ms", 0.5), ("30 s", 30), ("1d", 86400), ("0.25", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    assert load(f"{MINIMAL}timeout: {text}\n").spec.timeout == seconds


@pytest.mark.parametrize(("text", "size"), [("20", 20), ("20GiB", 20), ("20 G", 20), ("1TiB", 1024)])
def test_sizes(text: str, size: int) -> None:
    assert load(f"{MINIMAL}", f"groups.party.volume_size={text}").spec.groups["party"].volume_size == size


@pytest.mark.parametrize(
    ("barrier", "path", "message"),
    [
        ("{quorum: 0}", "barrier.quorum", "must be a number of hosts or a percentage, not 0"),
        ("{quorum: 0.75}", "barrier.quorum", "must be a number of hosts or a percentage, not 0.75"),
        ("{quorum: 120%}", "barrier.quorum", 'must be a number of hosts or a percentage, not "120%"'),
        ("{quorum: {}}", "barrier.quorum", "names no group"),
        ("{quorum: {party: some}}", "barrier.quorum", 'party must be a number of hosts or a percentage, not "some"'),
        ("{quorum: {prty: 1}}", "barrier.quorum.prty", "prty is not a group"),
        ("{on_early_exit: panic}", "barrier.on_early_exit", "must be continue or stop_on_failure or stop"),
        ("{grace: 0}", "barrier.grace", "must be longer than 0"),
    ],
)
def test_barriers_that_cannot_be(barrier: str, path: str, message: str) -> None:
    found = only(f"{MINIMAL}barrier: {barrier}\n")
    assert found.path == path
    assert message in found.message
    assert found.remedy


SHAPED = f"{MINIMAL}network: {{party: {{party: {{rtt: 80ms}}}}}}\n"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("{tolerance: {rtt: 2}}", "network_check.tolerance.rtt", "2 has no unit"),
        ("{tolerance: {rtt: 0%}}", "network_check.tolerance.rtt", "nothing is measured without any error"),
        ("{tolerance: {rate: 120%}}", "network_check.tolerance.rate", "more than all"),
        ("{tolerance: {delay: 2%}}", "network_check.tolerance.delay", "not a key"),
        ("{on_deviation: ignore}", "network_check.on_deviation", 'must be mark or refuse, not "ignore"'),
        ("{pairs: 0}", "network_check.pairs", "must be at least 1"),
        ("{compensate: maybe}", "network_check.compensate", "valid boolean"),
    ],
)
def test_checks_of_the_network_that_cannot_be(text: str, path: str, message: str) -> None:
    found = only(f"{SHAPED}network_check: {text}\n")
    assert found.path == path
    assert message in found.message
    assert found.remedy


def test_a_check_needs_a_network() -> None:
    found = only(f"{MINIMAL}network_check: {{pairs: 3}}\n")
    assert (found.path, found.message) == ("network_check", "there is no network to check")
    spec = load(f"{SHAPED}network_check: {{tolerance: {{rtt: 5%}}}}\n").spec
    assert spec.network_check.tolerance.model_dump() == {"rtt": 5, "jitter": 25, "loss": 0.1, "rate": 5}


def test_a_number_alone_is_of_one_group() -> None:
    assert load(f"{MINIMAL}barrier: {{quorum: 1}}\n").spec.barrier.quorum == 1
    found = only("groups: {party: {count: 2}, chain: {}}\ncommand: x\nbarrier: {quorum: 1}\n")
    assert (found.path, found.message) == ("barrier.quorum", "1 of the hosts of 2 groups")
    assert "{party: 1}" in found.remedy


def test_environment_values_are_texts_as_the_file_shows_them() -> None:
    spec = load(MINIMAL + "environment: {A: 1, B: true, C: 0.5, D: on}\n").spec
    assert spec.environment == {"A": "1", "B": "true", "C": "0.5", "D": "on"}


def test_the_committed_experiments_are_right() -> None:
    for path in sorted((ROOT / "experiments").glob("*.yml")):
        source = str(path.relative_to(ROOT))
        load_experiment(path.read_text(encoding="utf-8"), source)
        schema_line = path.read_text(encoding="utf-8").splitlines()[0]
        assert schema_line == "# yaml-language-server: $schema=schema.json"


# --- one problem each -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addition", "line", "path", "message", "remedy"),
    [
        ("repeat: 3", 3, "repeat", "not a key", "Did you mean repeats?"),
        ("netz: {}", 3, "netz", "not a key", "Known here: description"),
        ("barrier: {dedline: 3}", 3, "barrier.dedline", "not a key", "Did you mean deadline?"),
        ("repeats: 0", 3, "repeats", "at least 1, not 0", "How often"),
        ("repeats: '3'", 3, "repeats", 'whole number, not "3"', "How often"),
        ("repeats: 1.5", 3, "repeats", "whole number, not 1.5", "How often"),
        ("repeats: true", 3, "repeats", "whole number, not true", "How often"),
        ("repeats:", 3, "repeats", "whole number, not nothing", "How often"),
        ("seed: -1", 3, "seed", "at least 0, not -1", "Seed"),
        ("description: 3", 3, "description", "must be a text, not 3", 'Quote it: "3"'),
        ("order: randm", 3, "order", 'random or sequential, not "randm"', "Order"),
        ("timeout: 2 parsecs", 3, "timeout", "must be a duration", "30s, 2m"),
        ("timeout: -1", 3, "timeout", "longer than 0", "seconds"),
        ("timeout: .inf", 3, "timeout", "must be a duration", "seconds"),
        ("timeout: 100d", 3, "timeout", "30 days or less", "seconds"),
        ("timeout: 1:30", 3, "timeout", 'must be a duration, not "1:30"', "2m"),
        ("user: Some One", 3, "user", "cannot be a login name", "root"),
        ("collect: '*.log'", 3, "collect", 'must be a list, not "*.log"', "globs"),
        ("collect: [../x]", 3, "collect[0]", "leads out", "glob below"),
        ("collect: [/etc/passwd]", 3, "collect[0]", "leads out", "glob below"),
        ("runtime: {packages: [A B]}", 3, "runtime.packages[0]", "name of a package", "python3-nacl"),
        ("environment: {A-B: x}", 3, "environment.A-B", "environment variable", "letters"),
        ("environment: {A: [1]}", 3, "environment.A", "text or a number, not [1]", "quote"),
        ("environment: {A: '{{ nope }}'}", 3, "environment.A", "names nope", "Known: rank"),
        ("environment: {A: '{{ rnk }}'}", 3, "environment.A", "names rnk", "Did you mean rank?"),
        ("environment: {A: '{{ rank'}", 3, "environment.A", "template syntax", "Jinja2"),
        ("environment: {A: '{{ rank | nope }}'}", 3, "environment.A", "No filter named 'nope'", "Jinja2"),
        ("rendezvous: partie", 3, "rendezvous", "not a group", "Did you mean party?"),
        ("sites: {Bad-Site: {}}", 3, "sites.Bad-Site", "name of a site", "lower-case"),
        ("sites: {us: {region: us}}", 3, "sites.us.region", "AWS region", "us-east-1"),
        ("sites: {us: {cidr: 10.0.0.0/8}}", 3, "sites.us.cidr", "cannot be the network", "/16 to /28"),
        ("sites: {us: {cidr: 8.8.0.0/16}}", 3, "sites.us.cidr", "cannot be the network", "10.0.0.0/8"),
        ("sites: {us: {cidr: 10.0.0.1/16}}", 3, "sites.us.cidr", "not an IPv4 network", "zeros"),
        ("artifacts: [{dest: x}]", 3, "artifacts[0].src", "is missing", "relative to the experiment"),
        ("artifacts: [{src: a, dest: a/b}]", 3, "artifacts[0].dest", "plain file name", "without slashes"),
        ("artifacts: [{src: a, dest: ..}]", 3, "artifacts[0].dest", "plain file name", "without slashes"),
        ("artifacts: [{src: .}]", 3, "artifacts[0].dest", "cannot be a name", "Give dest"),
        ("artifacts: [{src: x/hosts.config}]", 3, "artifacts[0].dest", "Startline writes itself", "another"),
        ("artifacts: [{src: a, groups: [partie]}]", 3, "artifacts[0].groups", "not a group", "party"),
        ("artifacts: [{src: a}, {src: b/a}]", 3, "artifacts[1].dest", "has a from artifacts[0]", "another"),
        ("parameters: {rank: 1}", 3, "parameters.rank", "knows about itself", "another name"),
        ("parameters: {loop: 1}", 3, "parameters.loop", "template language", "another name"),
        ("parameters: {1x: 1}", 3, "parameters.1x", "name of a parameter", "letter"),
        ("parameters: {x: []}", 3, "parameters.x", "no trial", "Give it values"),
        ("parameters: {x: [1, 2, 1]}", 3, "parameters.x", "1 twice", "repeats"),
        ("parameters: {x: [1, '1']}", 3, "parameters.x", '"1" twice', "repeats"),
        ("parameters: {x: [true, 'true']}", 3, "parameters.x", "twice", "repeats"),
        ("parameters: {x: [1, [2]]}", 3, "parameters.x", "item 1 must be", "axis"),
        ("parameters: {x: {a: 1}}", 3, "parameters.x", "must be a text", "axis"),
        ("parameters: {x: }", 3, "parameters.x", "not null", "text"),
        ("parameters: {x: .nan}", 3, "parameters.x", "finite", "text"),
        ("parameters: {x: '{{ y }}'}", 3, "parameters.x", "not filled in", "command"),
        ("parameters: {x: [1, 2]}", 3, "parameters.x", "no template uses", "{{ x }}"),
        ("parameters: {x: 1}\nexclude: [{x: 1}]", 4, "exclude[0].x", "one value only", "Axes"),
        ("exclude: [{x: 1}]", 3, "exclude[0].x", "not a parameter", "Axes: none"),
        ("exclude: [{}]", 3, "exclude[0]", "must be a mapping", "parameters"),
        ("include: [{x: [1]}]", 3, "include[0]", "one plain value", "parameters"),
        ("include: [{x: 1}]", 3, "include[0].x", "not a parameter", "Parameters: none"),
        ("barrier: 3", 3, "barrier", "must be a mapping, not 3", "start"),
        ("{{ x }}: 1", 3, "", "looks like a mapping", "Quote"),
        ("description: !vault x", 3, "description", "the tag !vault", "Remove"),
        ("description: !!python/object:os.system x", 3, "description", "the tag", "Remove"),
        ("runtime: !vault {packages: [x]}", 3, "runtime", "the tag !vault", "Remove"),
        ("seed: !!int many", 3, "seed", "cannot be read as !!int", "Remove"),
        (f"seed: {'1' * 5000}", 3, "seed", "cannot be read as !!int", "Remove"),
        ("command: twice", 3, "command", "a second time; line 2", "Remove"),
        ("expires_after: soon", 3, "expires_after", "duration", "seconds"),
    ],
)  # fmt: skip
def test_each_problem_names_line_key_and_remedy(addition: str, line: int, path: str, message: str, remedy: str) -> None:
    found = only(f"{MINIMAL}{addition}\n")
    assert (found.file, found.line, found.path) == (SOURCE, line, path)
    assert message in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("group", "path", "message", "remedy"),
    [
        ("count: 0", ".count", "at least 1, not 0", "one host"),
        ("count: -3", ".count", "at least 1, not -3", "one host"),
        ('count: "8"', ".count", 'not the text "8"', "Remove the quotes"),
        ("count: many", ".count", "whole number", "{{ parties }}"),
        ("count: {{ parties }}", ".count", "looks like a mapping", "Quote it"),
        ('count: "{{ partis }}"', ".count", "names partis", "Known: none"),
        ('count: "{{ rank }}"', ".count", "differs from host to host", "Only parameters"),
        ("isntance_type: x.y", ".isntance_type", "not a key", "Did you mean instance_type?"),
        ("instance_type: huge", ".instance_type", "instance type", "t3a.medium"),
        ("volume_size: 0", ".volume_size", "1 GiB to 64 TiB", "GiB"),
        ("volume_size: 20MB", ".volume_size", "must be a size", "20GiB"),
        ("site: usa", ".site", "usa is not declared", "Declared sites: none"),
        ("command: ' '", ".command", "is empty", "shell command"),
        ("image: {}", ".image", "names no image", "id, or both"),
        ("image: {name: debian-*}", ".image", "names no image", "id, or both"),
        ("image: {id: ami-01234567, owner: self, name: abc}", ".image", "names no image", "id, or both"),
        ("image: {id: 7}", ".image.id", "must be a text", 'Quote it: "7"'),
        ("image: {owner: 136693071363, name: abc}", ".image.owner", "must be a text", 'Quote it: "136693071363"'),
    ],
)  # fmt: skip
def test_each_problem_of_a_group(group: str, path: str, message: str, remedy: str) -> None:
    found = only(f"command: 'true'\ngroups:\n  party:\n    {group}\n")
    assert (found.line, found.path) == (4, f"groups.party{path}")
    assert message in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize(
    "name", ["Party", "1st", "par-ty", "par.ty", "all", "ungrouped", "startline", "fleet", "site_x", "x" * 33]
)
def test_group_names_become_ansible_groups_tags_and_host_names(name: str) -> None:
    assert only(f"command: 'true'\ngroups: {{{name}: {{}}}}\n").path == f"groups.{name}"


def test_a_group_needs_a_command() -> None:
    found = only("groups:\n  a: {command: 'true'}\n  b: {}\n")
    assert (found.line, found.path) == (3, "groups.b.command")
    assert "nothing to run" in found.message


def test_groups_are_needed() -> None:
    assert only("command: 'true'\n").path == "groups"
    assert only("command: 'true'\ngroups: {}\n").message == "is empty"


def test_several_sites_must_be_named_and_kept_apart() -> None:
    sites = "sites: {a: {cidr: 10.1.0.0/16}, b: {cidr: 10.1.128.0/17}}"
    two = f"command: 'true'\n{sites}\ngroups: {{party: {{site: a}}, other: {{}}}}\n"
    overlap, unnamed = problems(two)
    assert (overlap.path, "overlaps the network of site a" in overlap.message) == ("sites.b.cidr", True)
    assert (unnamed.path, unnamed.remedy) == ("groups.other.site", "Declared sites: a, b.")


PRIVATE = """
command: run
sites: {{us: {{}}, lab: {{gateway: {gateway}{lab}}}, eu: {{{eu}}}}}
groups: {{a: {{site: us}}, login: {{site: lab}}, work: {{site: lab}}, b: {{site: eu}}}}
rendezvous: {rendezvous}
"""


@pytest.mark.parametrize(
    ("values", "path", "message", "remedy"),
    [
        ({"gateway": "logon"}, "sites.lab.gateway", "logon is not a group", "Did you mean login?"),
        ({"gateway": "a"}, "sites.lab.gateway", "a is in site us", "Groups of lab: login, work."),
        (
            {"rendezvous": "work"},
            "sites.lab.gateway",
            "work-0 is the rendezvous, and behind the gateway us, eu cannot reach it by tcp",
            "Give transport: s3 to us, eu, or name another group as rendezvous: login.",
        ),
        ({"rendezvous": "work", "eu": "transport: s3"}, "sites.lab.gateway", "gateway us cannot", "s3 to us, or"),
        ({"lab": ", cidr: 10.1.0.0/28"}, "sites.lab.cidr", "10.1.0.0/28 cannot be halved", "/27 or larger"),
    ],
)
def test_a_gateway_is_a_group_of_its_site_and_everybody_reaches_the_rendezvous(
    values: dict[str, str], path: str, message: str, remedy: str
) -> None:
    text = PRIVATE.format(**{"gateway": "login", "rendezvous": "a", "lab": "", "eu": "", **values})
    found = only(text)
    assert found.path == path
    assert message in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize("rendezvous", ["a", "login"])
def test_a_gateway_may_be_the_rendezvous(rendezvous: str) -> None:
    assert load(PRIVATE.format(gateway="login", rendezvous=rendezvous, lab="", eu="")).spec.sites["lab"].gateway


def test_a_rendezvous_behind_a_gateway_is_met_through_s3() -> None:
    text = PRIVATE.format(gateway="login", rendezvous="work", lab=", transport: tcp", eu="")
    assert load(text + "barrier: {transport: s3}\n").spec.rendezvous == "work"


def test_mistakes_of_a_gateway_come_with_the_others() -> None:
    text = PRIVATE.format(gateway="logon", rendezvous="a", lab=", cidr: 10.1.0.0/28", eu="regoin: x")
    assert [problem.path for problem in problems(text)] == ["sites.eu.regoin", "sites.lab.cidr", "sites.lab.gateway"]


def test_default_networks_of_sites_differ() -> None:
    spec = load("command: 'true'\nsites: {a: {}, b: {}}\ngroups: {party: {site: a}}\n").spec
    assert spec.networks == {"a": "10.77.0.0/16", "b": "10.78.0.0/16"}


def test_artifacts_that_are_not_there() -> None:
    asked: list[str] = []
    text = MINIMAL + "artifacts: [{src: ../workloads/dkg}, {src: /opt/x}, {src: ~/y, dest: y}]\n"
    found = problems(text, exists=lambda path: asked.append(path) is not None)
    assert asked == ["workloads/dkg", "/opt/x", "experiments/~/y"]
    assert [p.path for p in found] == ["artifacts[0].src", "artifacts[1].src", "artifacts[2].src"]
    assert "~ is not filled in" in found[2].remedy


def test_all_problems_at_once_in_the_order_of_the_file() -> None:
    text = (
        "repeats: 0\n"
        "groups:\n"
        "  party: {count: 0, site: mars}\n"
        "  Other: {count: 1}\n"
        "parameters: {rank: 1, protocol: [a, a]}\n"
        "command: run {{ nope }} {{ protocol }}\n"
        "rendezvous: pary\n"
        "wrong: 1\n"
    )
    found = problems(text, "timeout=x")
    assert [(p.line, p.path) for p in found] == [
        (1, "repeats"),
        (3, "groups.party.count"),
        (3, "groups.party.site"),
        (4, "groups.Other"),
        (5, "parameters.protocol"),
        (5, "parameters.rank"),
        (6, "command"),
        (7, "rendezvous"),
        (8, "wrong"),
        (None, "timeout"),
    ]


def test_a_wrong_part_causes_no_second_problem() -> None:
    # party is wrong, but declared; protocol is wrong, but a parameter.
    text = (
        "groups: {party: {count: x}}\nrendezvous: party\n"
        "artifacts: [{src: a, groups: [party]}]\nparameters: {protocol: []}\ncommand: run {{ protocol }}\n"
    )
    assert [p.path for p in problems(text)] == ["groups.party.count", "parameters.protocol"]


def test_items_of_lists_keep_the_index_that_they_have_in_the_file() -> None:
    text = MINIMAL + "artifacts: [{dest: x}, {src: a}, {dest: y}, {src: b}]\nexclude: [{}, {z: 1}]\n"
    found = problems(text, exists=lambda path: False)
    assert [p.path for p in found] == [*(f"artifacts[{n}].src" for n in range(4)), "exclude[0]", "exclude[1].z"]


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "message", "remedy"),
    [
        ("", 1, "is empty", "docs/experiment.md"),
        ("# nothing\n", 1, "is empty", "docs/experiment.md"),
        ("- a\n", 1, "not a mapping", "docs/experiment.md"),
        ("just text", 1, "not a mapping", "docs/experiment.md"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "is not YAML", "brackets"),
        ("a: 1\n\tb: 2\n", 2, "is not YAML", "spaces"),
        ("a: 1\ncommand: echo a: b\n", 2, "mapping values", "Quote the value"),
        ("a: 'x\n", 2, "is not YAML", "quotes"),
        ("a: *b\n", 1, "undefined alias", "anchor"),
        ("a: 1\n---\nb: 2\n", 2, "is not YAML", "One file holds one"),
        ("a: 1\nb: \x00\n", 2, "not text that YAML allows", "UTF-8"),
        ("[" * 3000, None, "nested too deeply", "few levels"),
        ("x" * 1_000_001, None, "too large", "right file"),
    ],
)  # fmt: skip
def test_broken_yaml(text: str, line: int | None, message: str, remedy: str) -> None:
    found = only(text)
    assert found.line == line
    assert message in found.message
    assert remedy in found.remedy


def test_a_document_that_contains_itself() -> None:
    assert any("contains itself" in p.message for p in problems(MINIMAL + "include: &a [*a]\n"))


def test_aliases_cannot_make_a_small_text_large() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert any("too large" in p.message for p in problems("\n".join(lines)))


def test_merges_cannot_make_a_small_text_slow() -> None:
    lines = ["a0: &a0 {k: 1}"] + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 30)]
    assert any("too large" in p.message for p in problems("\n".join(lines)))


def test_anchors_and_merges_work() -> None:
    text = "command: 'true'\ngroups:\n  a: &a {count: 3, volume_size: 9}\n  b: {<<: *a, count: 4}\n"
    spec = load(text).spec
    assert (spec.groups["b"].count, spec.groups["b"].volume_size) == (4, 9)


def test_scalars_are_those_of_yaml_1_2() -> None:
    data = _document.parse(
        "[on, no, 12:30, 1e3, 0x10, 0o10, 010, 1_000, 2026-11-21, ~, .5, -.inf, True, '1']", "x"
    ).data
    assert data == ["on", "no", "12:30", 1000.0, 16, 8, 10, "1_000", "2026-11-21", None, 0.5, float("-inf"), True, "1"]


# --- overrides --------------------------------------------------------------------------------------------------------


def test_overrides_change_any_key() -> None:
    experiment = load(
        MINIMAL + "parameters: {protocol: [a, b]}\nenvironment: {P: '{{ protocol }}'}\nartifacts: [{src: x}]\n",
        "groups.party.count=16, repeats=3,parameters.protocol=[normal, corrupted],barrier.deadline=90s\n"
        "environment.GREETING='a, b'\nartifacts[0].src=y,description=it's",
    )
    spec = experiment.spec
    assert (spec.groups["party"].count, spec.repeats, spec.barrier.deadline) == (16, 3, 90)
    assert spec.parameters["protocol"] == ["normal", "corrupted"]
    assert spec.environment == {"P": "{{ protocol }}", "GREETING": "a, b"}
    assert spec.artifacts[0].src == "y"
    assert spec.description == "it's"


def test_the_last_override_wins() -> None:
    assert load(MINIMAL, "repeats=2,repeats=3").spec.repeats == 3


@pytest.mark.parametrize(
    ("text", "path", "message", "remedy"),
    [
        ("groups.prty.count=3", "groups.prty.count", "there is no prty in groups", "Did you mean party?"),
        ("groups.new={count: 1}", "groups.new", "there is no new in groups", "There are: party"),
        ("parameters.x=1", "parameters.x", "there is no x in parameters", "There are: none"),
        ("groups.party.cuont=3", "groups.party.cuont", "not a key", "Did you mean count?"),
        ("wrong=3", "wrong", "not a key", "Known here"),
        ("barrier.dedline=3", "barrier.dedline", "not a key", "Did you mean deadline?"),
        ("command.x=3", "command.x", "command is not a mapping", "[index]"),
        ("artifacts[0].src=3", "artifacts[0].src", "artifacts is not a list", "[index]"),
        ("groups.party.count=0", "groups.party.count", "at least 1", "one host"),
        ("repeats=", "repeats", "not nothing", "How often"),
        ("repeats", "", "'repeats' is not of the form", "path=value"),
        ("=3", "", "not of the form", "path=value"),
        ("command=echo a, b", "", "'b' is not of the form", "Quote"),
        ("collect=[a, b", "", "[ is never closed", "Close"),
        ("description='abc", "", "' is never closed", "Close"),
        ("description=a: b: c", "description", "mapping values", "Quote"),
        ("description=!x y", "description", "the tag !x", "Quote"),
        ("command=echo {{ nope }}", "command", "names nope", "Known"),
    ],
)  # fmt: skip
def test_problems_of_an_override_point_at_the_override(text: str, path: str, message: str, remedy: str) -> None:
    base = MINIMAL + "parameters: {}\nartifacts: {}\n" if text.startswith("artifacts") else MINIMAL + "parameters: {}\n"
    found = [p for p in problems(base, text) if p.file == "-e set"]
    assert len(found) == 1
    assert (found[0].line, found[0].path) == (None, path)
    assert message in found[0].message
    assert remedy in found[0].remedy


def test_an_index_beyond_the_list() -> None:
    found = only(MINIMAL + "collect: [a]\n", "collect[1]=b")
    assert "has no item 1" in found.message
    assert "counted from 0" in found.remedy


def test_an_override_mends_a_problem_of_the_file() -> None:
    assert load(MINIMAL + "repeats: 0\n", "repeats=1").spec.repeats == 1


_KEYS = st.from_regex(r"[a-z][a-z0-9_-]{0,8}", fullmatch=True)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(_KEYS | st.integers(0, 99), min_size=0, max_size=3), _KEYS, _VALUES), max_size=4))
def test_overrides_round_trip(items: list[tuple[list[str | int], str, t.Any]]) -> None:
    wanted = [((first, *rest), value) for rest, first, value in items]
    text = ",".join(f"{_document.format_path(path)}={json.dumps(value, ensure_ascii=False)}" for path, value in wanted)
    overrides, found = _document.parse_overrides(text)
    assert not found
    assert [(override.path, override.value) for override in overrides] == wanted


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60))
def test_no_override_text_is_a_crash(text: str) -> None:
    overrides, found = _document.parse_overrides(text)
    assert overrides or found or not text.replace(",", "").strip()
    document = _document.parse(MINIMAL, SOURCE)
    _document.apply_overrides(document, overrides, fixed=("groups",))


_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["count", "src", "x", "party"]), inner),
    max_leaves=8,
)
_TOP = st.sampled_from([*_experiment.ExperimentFile.model_fields, "unknown"])


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(_TOP, _JUNK, max_size=8))
def test_no_data_is_a_crash(data: dict[str, t.Any]) -> None:
    text = yaml.safe_dump(data, allow_unicode=True)
    found: tuple[Problem, ...] = ()
    try:
        load(text)
    except ExperimentError as exc:
        found = exc.problems
    assert all(problem.message and problem.remedy for problem in found)


# --- which experiment -------------------------------------------------------------------------------------------------


def test_a_name_or_a_path() -> None:
    here = ["automon", "dkg"]
    assert _experiment.find_experiment("dkg", here, lambda path: False) == "experiments/dkg.yml"
    assert _experiment.find_experiment("my/own.yml", here, lambda path: True) == "my/own.yml"


def test_an_unknown_experiment_lists_those_there_are() -> None:
    with pytest.raises(ExperimentError) as caught:
        _experiment.find_experiment("dkgg", ["automon", "dkg"], lambda path: False)
    assert "there is no experiment 'dkgg'" in str(caught.value)
    assert "Did you mean dkg? There are: automon, dkg." in str(caught.value)
    with pytest.raises(ExperimentError, match=r"there is no file x/y\.yml"):
        _experiment.find_experiment("x/y.yml", ["dkg"], lambda path: False)


def test_the_name_of_the_file_names_everything_of_the_run() -> None:
    with pytest.raises(ExperimentError, match="'My Test' cannot name an experiment"):
        load_experiment(MINIMAL, "experiments/My Test.yml")


# --- JSON Schema ------------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_current() -> None:
    committed = (ROOT / "experiments/schema.json").read_text(encoding="utf-8")
    # As data: releases of pydantic differ in the order of keys.
    assert json.loads(committed) == json.loads(_experiment.json_schema()), (
        "make it anew, with PYTHONPATH=collections: "
        "python -m ansible_collections.startline.lab.plugins.plugin_utils._experiment > experiments/schema.json"
    )


def test_every_key_of_the_schema_is_described() -> None:
    schema = json.loads(_experiment.json_schema())
    for definition in (schema, *schema["$defs"].values()):
        assert definition["additionalProperties"] is False
        for name, field in definition["properties"].items():
            named = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            assert field.get("description") or named.get("description"), name


def test_the_schema_knows_what_the_model_knows() -> None:
    validator = jsonschema.Draft202012Validator(json.loads(_experiment.json_schema()))
    validator.check_schema(validator.schema)
    for path in (ROOT / "experiments").glob("*.yml"):
        assert not list(validator.iter_errors(_document.parse(path.read_text(encoding="utf-8"), "x").data))
    for wrong in (
        "repeats: 0", "wrong: 1", "groups: {A: {}}", "groups: {a: {count: 0}}", "groups: {a: {count: x}}",
        "timeout: soon", "parameters: {x: []}", "artifacts: [{}]",
    ):  # fmt: skip
        data = {"groups": {"party": {}}, **_document.parse(wrong, "x").data}
        assert list(validator.iter_errors(data)), wrong


# --- the documentation -----------------------------------------------------------------------------------------------


def test_the_documentation_tells_every_key_and_its_examples_are_right() -> None:
    text = (ROOT / "docs/experiment.md").read_text(encoding="utf-8")
    for name in _experiment.ExperimentFile.model_fields:
        assert f"`{name}" in text, name
    for name in _template.HOST_VARIABLES:
        assert f"`{name}`" in text, name
    examples = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(examples) > 4
    for example in examples:
        data = {**_document.parse(example, "docs/experiment.md").data}
        data.setdefault("parameters", {"workers": 3})
        data.setdefault(
            "groups", {"worker": {"site": next(iter(data.get("sites", {"": 0})))} if "sites" in data else {}}
        )
        if any(group.get("site") for group in data["groups"].values()) and "sites" not in data:
            data["sites"] = {"us": {}}
        data.setdefault("command", "run")
        data["environment"] = {"ALL": " ".join(f"{{{{ {name} }}}}" for name in data["parameters"])}
        _plan.expand(load(json.dumps(data)))
