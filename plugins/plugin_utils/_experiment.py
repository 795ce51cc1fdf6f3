# SPDX-License-Identifier: GPL-3.0-or-later
"""The experiment file: its model, and the check that finds every problem at once.

The model accepts exactly what something acts on: a key that does nothing would be a lie. Its descriptions are what
editors show (experiments/schema.json is made from it: ``python -m
ansible_collections.startline.lab.plugins.plugin_utils._experiment``). This util is PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import ipaddress
import itertools
import json
import math
import os.path
import pathlib
import re
import types
import typing as t

from ansible_collections.startline.lab.plugins.module_utils._netem import DISTRIBUTIONS, NetemError, parse_percent
from ansible_collections.startline.lab.plugins.plugin_utils import (
    _netem,
    _network_check,
    _network_profile,
    _template,
)
from ansible_collections.startline.lab.plugins.plugin_utils._document import (
    Document,
    Path,
    apply_overrides,
    format_path,
    parse,
    parse_overrides,
)
from ansible_collections.startline.lab.plugins.plugin_utils._errors import (
    ExperimentError,
    Problem,
    did_you_mean,
    listed,
)
from ansible_collections.startline.lab.plugins.plugin_utils._requirements import Absent, require

try:
    import pydantic
    import pydantic_core
except ImportError as exc:
    pydantic = pydantic_core = Absent(exc)  # type: ignore[assignment]

Scalar = str | int | float | bool
_Item = t.TypeVar("_Item")

#: Become part of host names, S3 keys, tags and resource names: 64 characters is AWS's limit for a role, 22 are the
#: run's own.
EXPERIMENT_NAME: t.Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
#: Ansible's own groups, and those that hold every host of a run.
_RESERVED_GROUPS: t.Final = frozenset({"all", "ungrouped", "startline", "fleet", "ready", "localhost"})
#: Files that the agent writes into the working directory.
_RESERVED_FILES: t.Final = frozenset({"hosts.config", "stdout", "stderr", "meta.json", "trial.json"})
#: Files larger than this are not experiments.
_MAX_TEXT: t.Final = 1_000_000


# --- types of values --------------------------------------------------------------------------------------------------


def _refuse(message: str, remedy: str) -> pydantic_core.PydanticCustomError:
    # The text travels in the context: pydantic would take braces in it for its own template.
    return pydantic_core.PydanticCustomError("startline", "refused", {"message": message, "remedy": remedy})


def _shown(value: t.Any) -> str:
    """A value in a message, as YAML shows it, on one short line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_UNITS: t.Final = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def _duration(value: t.Any) -> int | float:
    remedy = "Give seconds (120) or a number with a unit: 500ms, 30s, 2m, 1.5h, 1d."
    seconds: t.Any = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d)\s*", value)
        if not match:
            raise _refuse(f"must be a duration, not {_shown(value)}", remedy)
        seconds = round(float(match[1]) * _UNITS[match[2]], 6)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise _refuse(f"must be a duration, not {_shown(value)}", remedy)
    if seconds <= 0:
        raise _refuse(f"must be longer than 0, not {_shown(value)}", remedy)
    if seconds > 30 * 86400:
        raise _refuse(f"must be 30 days or less, not {_shown(value)}", remedy)
    return int(seconds) if float(seconds).is_integer() else seconds


def _gibibytes(value: t.Any) -> int:
    remedy = "Give whole GiB (20), or a number with a unit: 20GiB, 1TiB."
    size: t.Any = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+)\s*(G|GiB|T|TiB)\s*", value)
        if not match:
            raise _refuse(f"must be a size, not {_shown(value)}", remedy)
        size = int(match[1]) * (1024 if match[2].startswith("T") else 1)
    if isinstance(size, bool) or not isinstance(size, int):
        raise _refuse(f"must be a size, not {_shown(value)}", remedy)
    if not 1 <= size <= 65536:
        raise _refuse(f"must be 1 GiB to 64 TiB, not {_shown(value)}", remedy)
    return size


def _count(value: t.Any) -> int | str:
    if isinstance(value, str) and _template.is_template(value):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*", value):
        raise _refuse(f"must be a number, not the text {_shown(value)}", f"Remove the quotes: {value.strip()}.")
    if isinstance(value, bool) or not isinstance(value, int):
        raise _refuse(
            f"must be a whole number, not {_shown(value)}",
            'Give a number (8), or a template of parameters: "{{ parties }}".',
        )
    if value < 1:
        raise _refuse(
            f"must be at least 1, not {value}", "A group has one host at least; remove the group if it is not wanted."
        )
    return value


def _share(value: t.Any) -> int | str:
    """How many of some hosts: a number, or a percentage."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value) and 0 < float(value[:-1]) <= 100:
        return value
    raise _refuse(f"must be a number of hosts or a percentage, not {_shown(value)}", "For example 6 or 75%.")


def _quorum(value: t.Any) -> int | str | dict[str, int | str]:
    if not isinstance(value, dict):
        return _share(value)
    if not value:
        raise _refuse("names no group", "Give groups and what each needs: {worker: 75%}.")
    for name, share in value.items():
        try:
            _share(share)
        except pydantic_core.PydanticCustomError as exc:
            context = exc.context or {}
            raise _refuse(f"{name} {context['message']}", context["remedy"]) from None
    return value


def _is_scalar(value: t.Any) -> bool:
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _parameter(value: t.Any) -> Scalar | list[Scalar]:
    remedy = "Give a text, a number, true or false; or a list of them, which is an axis of the sweep."
    values = value if isinstance(value, list) else [value]
    for index, item in enumerate(values):
        what = f"item {index} must be" if isinstance(value, list) else "must be"
        if not _is_scalar(item):
            raise _refuse(f"{what} a text, a finite number, true or false, not {_shown(item)}", remedy)
        if _template.is_template(item):
            raise _refuse(
                f"{what} a plain value; templates in parameters are not filled in",
                "Use the template in the command instead.",
            )
    if isinstance(value, list):
        if not value:
            raise _refuse(
                "is an axis without values, so there would be no trial",
                "Give it values, or a single value instead of a list.",
            )
        seen: dict[str, Scalar] = {}
        for item in value:
            text = _template.as_text(item)
            if text in seen:
                raise _refuse(
                    f"has the value {_shown(item)} twice", "Remove one; to run a point several times, use repeats."
                )
            seen[text] = item
    return t.cast("Scalar | list[Scalar]", value)


def _percent(value: t.Any) -> float:
    try:
        percent = parse_percent(value)
    except NetemError as exc:
        raise _refuse(str(exc), "A tolerance is a percentage: 2%.") from exc
    if percent <= 0:
        raise _refuse("nothing is measured without any error", "Give a percentage above 0: 2%.")
    return percent


def _text(value: t.Any) -> str:
    if not _is_scalar(value):
        raise _refuse(
            f"must be a text or a number, not {_shown(value)}", "Environment variables are texts; quote the value."
        )
    return _template.as_text(value)


def _point(value: t.Any) -> dict[str, Scalar]:
    remedy = "Give parameters and their values: {protocol: normal, parties: 16}."
    if not isinstance(value, dict) or not value:
        raise _refuse(f"must be a mapping of parameters, not {_shown(value)}", remedy)
    for name, item in value.items():
        if not _is_scalar(item) or _template.is_template(item):
            raise _refuse(f"{name} must be one plain value, not {_shown(item)}", remedy)
    return value


@dataclasses.dataclass(frozen=True)
class _Form:
    """A text of a given form, in the model and in the JSON Schema."""

    regex: str
    what: str
    remedy: str

    def check(self, value: str) -> str:
        """The text, if it has the form."""
        if not re.fullmatch(self.regex, value):
            raise _refuse(f"{_shown(value)} {self.what}", self.remedy)
        return value

    def __get_pydantic_core_schema__(
        self, source: t.Any, handler: pydantic.GetCoreSchemaHandler
    ) -> pydantic_core.CoreSchema:
        return pydantic_core.core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, t.Any]:
        return {**handler(schema), "pattern": f"^(?:{self.regex})$"}


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: annotations are
class _Schema:
    """What the JSON Schema says of a type whose values we check ourselves."""

    schema: dict[str, t.Any]

    def __get_pydantic_json_schema__(
        self, core: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, t.Any]:
        return copy.deepcopy(self.schema)  # pydantic writes a field's default into it


def _command(value: str) -> str:
    if not value.strip():
        raise _refuse("is empty", "Give the shell command that a host runs.")
    if "\0" in value:
        raise _refuse("has a NUL character in it", "Remove it.")
    return value.strip()


def _glob(value: str) -> str:
    if not value or value.startswith(("/", "~")) or ".." in value.split("/"):
        raise _refuse(
            f"{_shown(value)} leads out of the working directory", "Give a glob below it: '*.log', 'out/**/*.csv'."
        )
    return value


def _quantity(key: str) -> pydantic.PlainValidator:
    """Reads a quantity of the network: a text with its unit, `none`, or a template of parameters."""

    def read(value: t.Any) -> str:
        if isinstance(value, str) and _template.is_template(value):
            return value
        try:
            return _netem.check_value(key, value)
        except NetemError as exc:
            raise _refuse(str(exc), "docs/network.md lists the quantities of a link and their units.") from exc

    return pydantic.PlainValidator(read)


_COUNT_SCHEMA: t.Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"\{[{%]"}],
    "examples": [8, "{{ parties }}"],
}
_DURATION_SCHEMA: t.Final = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(ms|s|min|m|h|d)\s*$"},
    ],
    "examples": [120, "500ms", "2m"],
}
_SIZE_SCHEMA: t.Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\s*\d+\s*(G|GiB|T|TiB)\s*$"}],
    "examples": [20, "20GiB"],
}
_SHARE_SCHEMA: t.Final = {
    "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": r"^\d+(\.\d+)?%$"}],
    "examples": [6, "75%"],
}
_QUORUM_SCHEMA: t.Final = {
    "anyOf": [
        *_SHARE_SCHEMA["anyOf"],
        {"type": "object", "additionalProperties": _SHARE_SCHEMA, "minProperties": 1},
    ],
    "examples": ["75%", {"worker": 6}],
}
_TOLERANCE_SCHEMA: t.Final = {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*%\s*$", "examples": ["2%"]}
_SCALAR_SCHEMA: t.Final = {"type": ["string", "number", "boolean"]}
_PARAMETER_SCHEMA: t.Final = {
    "anyOf": [_SCALAR_SCHEMA, {"type": "array", "items": _SCALAR_SCHEMA, "minItems": 1, "uniqueItems": True}]
}
_POINT_SCHEMA: t.Final = {"type": "object", "additionalProperties": _SCALAR_SCHEMA, "minProperties": 1}

_TEMPLATE_OR_NONE: t.Final = r"\{[{%]|^none$"


def _quantity_schema(pattern: str, *examples: str) -> _Schema:
    return _Schema(
        {
            "type": "string",
            "pattern": f"^\\s*\\d+(\\.\\d+)?\\s*{pattern}\\s*$|{_TEMPLATE_OR_NONE}",
            "examples": [*examples],
        }
    )


def _choice_schema(*choices: str) -> _Schema:
    return _Schema({"anyOf": [{"enum": [*choices, "none"]}, {"type": "string", "pattern": r"\{[{%]"}]})


_TIME_SCHEMA: t.Final = _quantity_schema("(us|ms|s)", "40ms", "250us")
_RATE_SCHEMA: t.Final = _quantity_schema("([kKmMgG]?[bB]it)(/s)?", "200mbit", "64kbit")
_PERCENT_SCHEMA: t.Final = _quantity_schema("%", "0.1%")
_BURST_SCHEMA: t.Final = _Schema(
    {"anyOf": [{"type": "number", "exclusiveMinimum": 1}, {"type": "string", "pattern": _TEMPLATE_OR_NONE}]}
)

Count = t.Annotated[int | str, pydantic.PlainValidator(_count), _Schema(_COUNT_SCHEMA)]
Duration = t.Annotated[int | float, pydantic.PlainValidator(_duration), _Schema(_DURATION_SCHEMA)]
Gibibytes = t.Annotated[int, pydantic.PlainValidator(_gibibytes), _Schema(_SIZE_SCHEMA)]
Parameter = t.Annotated[Scalar | list[Scalar], pydantic.PlainValidator(_parameter), _Schema(_PARAMETER_SCHEMA)]
Point = t.Annotated[dict[str, Scalar], pydantic.PlainValidator(_point), _Schema(_POINT_SCHEMA)]
Quorum = t.Annotated[int | str | dict[str, int | str], pydantic.PlainValidator(_quorum), _Schema(_QUORUM_SCHEMA)]
Percent = t.Annotated[float, pydantic.PlainValidator(_percent), _Schema(_TOLERANCE_SCHEMA)]
Text = t.Annotated[str, pydantic.PlainValidator(_text), _Schema(_SCALAR_SCHEMA)]
Command = t.Annotated[str, pydantic.AfterValidator(_command), _Schema({"type": "string", "minLength": 1})]
Glob = t.Annotated[str, pydantic.AfterValidator(_glob), _Schema({"type": "string", "minLength": 1})]

GroupName = t.Annotated[
    str,
    _Form(
        r"[a-z][a-z0-9_]{0,31}",
        "cannot be the name of a group of hosts",
        "Start with a lower-case letter; then lower-case letters, digits and _, 32 characters at most.",
    ),
]
SiteName = t.Annotated[
    str,
    _Form(
        r"[a-z][a-z0-9_]{0,31}",
        "cannot be the name of a site",
        "Start with a lower-case letter; then lower-case letters, digits and _, 32 characters at most.",
    ),
]
ParameterName = t.Annotated[
    str,
    _Form(
        r"[A-Za-z][A-Za-z0-9_]{0,39}",
        "cannot be the name of a parameter",
        "Start with a letter; then letters, digits and _, 40 characters at most.",
    ),
]
VariableName = t.Annotated[
    str,
    _Form(
        r"[A-Za-z_][A-Za-z0-9_]{0,255}",
        "cannot be the name of an environment variable",
        "Use letters, digits and _, no digit first.",
    ),
]
Region = t.Annotated[
    str, _Form(r"[a-z]{2,}(-[a-z]+)+-\d+", "is not the form of an AWS region", "For example us-east-1 or eu-central-1.")
]
InstanceType = t.Annotated[
    str, _Form(r"[a-z0-9-]+\.[a-z0-9-]+", "is not the form of an instance type", "For example t3a.medium.")
]
Package = t.Annotated[
    str,
    _Form(
        r"[a-z0-9][a-z0-9+.:~=_-]*",
        "cannot be the name of a package",
        "As the hosts' distribution names it: python3-nacl.",
    ),
]
FileName = t.Annotated[
    str,
    _Form(
        r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}",
        "is not a plain file name",
        "One name without slashes: letters, digits, dot, _ and -.",
    ),
]
Login = t.Annotated[
    str,
    _Form(
        r"[a-z_][a-z0-9_-]{0,31}", "cannot be a login name", "Give a user that the image has, or leave it out for root."
    ),
]
ImageId = t.Annotated[
    str, _Form(r"ami-[0-9a-f]{8,17}", "is not the id of an image", "For example ami-0123456789abcdef0.")
]
ImageName = t.Annotated[
    str,
    _Form(
        r"[A-Za-z0-9()\[\] ./'@_*?-]{3,128}",
        "cannot be the name of an image",
        "A name, with * and ? for what differs: debian-12-amd64-*.",
    ),
]
Owner = t.Annotated[
    str,
    _Form(
        r"\d{12}|self|amazon|aws-marketplace",
        "is not an owner of images",
        "A 12-digit account id in quotes, self or amazon.",
    ),
]

Transport = t.Literal["tcp", "s3"]
Addresses = t.Literal["auto", "private", "public"]


# --- the model --------------------------------------------------------------------------------------------------------


class _Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


def _beside(source: str, path: str) -> str:
    """Where a path in the experiment file `source` leads: relative to the project as that is, or absolute."""
    return os.path.normpath(os.path.join(os.path.dirname(source), path))


class Site(_Model):
    """A named place: an AWS region with a network of its own."""

    region: Region | None = pydantic.Field(
        default=None, description="AWS region, for example us-east-1. Left out: the inventory's region."
    )
    cidr: str | None = pydantic.Field(
        default=None,
        description="Private IPv4 network of the site, /16 to /28. Left out: 10.77.0.0/16 and following.",
    )
    transport: Transport | None = pydantic.Field(
        default=None, description="How its hosts reach the rendezvous, if not as `barrier.transport` says."
    )
    gateway: str | None = pydantic.Field(
        default=None,
        description="Makes the site private: only this group has public addresses, and its first host leads to the others.",
    )


class Image(_Model):
    """What the hosts boot: an `id`, or the newest image of an `owner` whose `name` matches."""

    id: ImageId | None = pydantic.Field(default=None, description="Id of the image. It is different in each region.")
    name: ImageName | None = pydantic.Field(
        default=None, description="Pattern of the image's name (* and ?); the newest match wins."
    )
    owner: Owner | None = pydantic.Field(
        default=None, description="Who made it: a 12-digit account id (in quotes), self or amazon."
    )


class Group(_Model):
    """Hosts with one job in the experiment."""

    site: str | None = pydantic.Field(
        default=None, description="The site where its hosts are. May be left out when there is one site."
    )
    count: Count = pydantic.Field(
        default=1,
        description='How many hosts: a number, or a template of parameters ("{{ parties }}"). The largest is launched.',
    )
    spares: t.Annotated[int, pydantic.Field(ge=0)] = pydantic.Field(
        default=0,
        description="Hosts beyond count that get ready for each trial and step in for those that do not.",
    )
    instance_type: InstanceType = pydantic.Field(default="t3a.medium", description="EC2 instance type.")
    image: Image | None = pydantic.Field(
        default=None, description="What the hosts boot. Left out: the inventory's image."
    )
    volume_size: Gibibytes = pydantic.Field(
        default=8, description="Size of the root volume: GiB, or with a unit (20GiB)."
    )
    command: Command | None = pydantic.Field(
        default=None, description="What the hosts of this group run, in place of the experiment's command."
    )
    environment: dict[VariableName, Text] = pydantic.Field(
        default={},
        description="Environment variables of this group, over those of the experiment. Values may be templates.",
    )


class Runtime(_Model):
    """What the hosts need before any trial."""

    packages: list[Package] = pydantic.Field(default=[], description="Packages of the hosts' own distribution.")


class Artifact(_Model):
    """A file or directory of yours that the hosts get."""

    src: t.Annotated[str, pydantic.Field(min_length=1)] = pydantic.Field(
        description="File or directory, relative to the experiment file."
    )
    dest: FileName | None = pydantic.Field(
        default=None, description="Its name in every working directory. Left out: the name it has."
    )
    groups: list[str] | None = pydantic.Field(
        default=None, min_length=1, description="The groups that get it. Left out: all."
    )

    @property
    def name(self) -> str:
        """Its name in the working directories."""
        return self.dest or pathlib.PurePosixPath(self.src).name

    def path(self, source: str) -> str:
        """Where it is: relative to the project as the experiment file `source` is, or absolute."""
        return _beside(source, self.src)


class Barrier(_Model):
    """The start barrier: when a trial may start, and when it stops."""

    deadline: Duration = pydantic.Field(
        default=60, description="How long the hosts have to get ready for a trial; past it the trial is aborted."
    )
    quorum: Quorum | None = pydantic.Field(
        default=None,
        description="How few hosts of each group may start: a number, 75%, or those by group. Left out: all.",
    )
    grace: Duration = pydantic.Field(
        default=10,
        description="How long a missing host is waited for once a quorum or spares could start without it.",
    )
    on_early_exit: t.Literal["continue", "stop_on_failure", "stop"] = pydantic.Field(
        default="continue",
        description="When a command ends before the others: let them run, stop them if it failed, or stop them.",
    )
    max_clock_error: Duration = pydantic.Field(
        default=0.05, description="Largest error bound of a host's clock. A start instant is as good as the clocks are."
    )
    on_clock_error: t.Literal["mark", "refuse"] = pydantic.Field(
        default="mark", description="Above the bound: mark the trial as degraded, or refuse to start it."
    )
    transport: Transport = pydantic.Field(
        default="tcp",
        description="How hosts reach the rendezvous: tcp, or s3 (letters in the bucket) where there is no route to it.",
    )


class Link(_Model):
    """What lies between two ends. `none` takes away what a wider rule gives."""

    profile: str | None = pydantic.Field(
        default=None,
        description="A ready-made link (aws, wan, 3g, ...) or a topology file (.json), for what is not given here.",
    )
    rtt: t.Annotated[str | None, _quantity("rtt"), _TIME_SCHEMA] = pydantic.Field(
        default=None, description="Round trip time that is added, half of it on each side: 80ms."
    )
    delay: t.Annotated[str | None, _quantity("delay"), _TIME_SCHEMA] = pydantic.Field(
        default=None, description="Delay that is added in each direction: 40ms. In place of rtt."
    )
    jitter: t.Annotated[str | None, _quantity("jitter"), _TIME_SCHEMA] = pydantic.Field(
        default=None, description="Standard deviation of the round trip time (of the delay, if that is given): 1ms."
    )
    distribution: t.Annotated[str | None, _quantity("distribution"), _choice_schema(*DISTRIBUTIONS)] = pydantic.Field(
        default=None, description="How the delay varies: normal if left out."
    )
    loss: t.Annotated[str | None, _quantity("loss"), _PERCENT_SCHEMA] = pydantic.Field(
        default=None, description="Share of the packets that are lost, in each direction: 0.1%."
    )
    loss_burst: t.Annotated[str | None, _quantity("loss_burst"), _BURST_SCHEMA] = pydantic.Field(
        default=None, description="Mean number of packets lost in a row. Left out: each is lost on its own."
    )
    rate: t.Annotated[str | None, _quantity("rate"), _RATE_SCHEMA] = pydantic.Field(
        default=None, description="What a host may send to all hosts at the other end together: 200mbit."
    )
    rate_per: t.Annotated[str | None, _quantity("rate_per"), _choice_schema(*_netem.RATE_PER)] = pydantic.Field(
        default=None, description="pair: each pair of hosts has a rate of its own. Left out: host."
    )
    queue: t.Annotated[str | None, _quantity("queue"), _TIME_SCHEMA] = pydantic.Field(
        default=None, description="How long packets may wait for the rate. Left out: a round trip, 50ms at least."
    )
    corrupt: t.Annotated[str | None, _quantity("corrupt"), _PERCENT_SCHEMA] = pydantic.Field(
        default=None, description="Share of the packets with a bit turned over."
    )
    duplicate: t.Annotated[str | None, _quantity("duplicate"), _PERCENT_SCHEMA] = pydantic.Field(
        default=None, description="Share of the packets that arrive twice."
    )
    reorder: t.Annotated[str | None, _quantity("reorder"), _PERCENT_SCHEMA] = pydantic.Field(
        default=None, description="Share of the packets that are not delayed, and so overtake others."
    )
    oneway: bool = pydantic.Field(
        default=False, description="Only from the first end to the second. Left out: both directions."
    )


class Moment(_Model):
    """What changes in a trial while it runs."""

    at: Duration = pydantic.Field(description="How long after the start: seconds, or with a unit (500ms, 2m).")
    network: dict[str, dict[str, Link]] = pydantic.Field(
        min_length=1,
        description="What lies between two ends from then on. What is not given here stays as it is; none takes it away.",
    )


class NetworkTolerance(_Model):
    """How far what is measured of the network may be off, besides what chance explains."""

    rtt: Percent = pydantic.Field(default=2.0, description="Of the round trip time; 0.5 ms in any case.")
    jitter: Percent = pydantic.Field(default=25.0, description="Of the jitter; 0.3 ms in any case.")
    loss: Percent = pydantic.Field(default=0.1, description="Share of the packets that may be lost more, or less.")
    rate: Percent = pydantic.Field(default=5.0, description="Of the rate.")


class NetworkCheck(_Model):
    """The measurement of the network before the trials, and what follows when it is not the one that was asked for."""

    enabled: bool = pydantic.Field(default=True, description="Whether the network is measured.")
    pairs: t.Annotated[int, pydantic.Field(ge=1)] = pydantic.Field(
        default=_network_check.ALL_PAIRS,
        description="How many pairs of hosts are measured at most. Of more, a sample with every kind of link.",
    )
    on_deviation: t.Literal["mark", "refuse"] = pydantic.Field(
        default="mark", description="A network that is off: mark its trials as degraded, or refuse to start them."
    )
    compensate: bool = pydantic.Field(
        default=False,
        description="Whether round trips are asked for with what is there already, instead of added to it.",
    )
    tolerance: NetworkTolerance = pydantic.Field(
        default_factory=NetworkTolerance, description="How far off is right, besides what chance explains."
    )


class ExperimentFile(_Model):
    """One experiment: what runs, where, with which parameters."""

    description: str = pydantic.Field(
        default="", description="One line that says what is measured. It heads the report."
    )
    sites: dict[SiteName, Site] = pydantic.Field(
        default={}, description="Named places. Left out: one site, in the inventory's region, for all groups."
    )
    addresses: Addresses = pydantic.Field(
        default="auto",
        description="Addresses that hosts get of each other: auto (private within a site, public between them), private, public.",
    )
    groups: dict[GroupName, Group] = pydantic.Field(
        min_length=1,
        description="Groups of hosts. Their order is the order of ranks: the last group comes last in hosts.config.",
    )
    rendezvous: str | None = pydantic.Field(
        default=None,
        description="The group whose first host is the barrier's meeting point. Left out: coordinator, else the first.",
    )
    runtime: Runtime = pydantic.Field(default_factory=Runtime, description="What the hosts need before any trial.")
    artifacts: list[Artifact] = pydantic.Field(
        default=[], description="Files and directories of yours that the hosts get."
    )
    parameters: dict[ParameterName, Parameter] = pydantic.Field(
        default={}, description="Variables for templates. A list is an axis of the sweep, a single value a constant."
    )
    include: list[Point] = pydantic.Field(
        default=[],
        description="Points besides the product of the axes. Each names every axis, and may set constants anew.",
    )
    exclude: list[Point] = pydantic.Field(
        default=[], description="Points to leave out: every one that matches all the values of an entry."
    )
    repeats: t.Annotated[int, pydantic.Field(ge=1)] = pydantic.Field(
        default=1, description="How often each point is measured."
    )
    warmups: t.Annotated[int, pydantic.Field(ge=0)] = pydantic.Field(
        default=0, description="How often each point is run first without being counted."
    )
    order: t.Literal["random", "sequential"] = pydantic.Field(
        default="random", description="Order of the points within each repeat: shuffled by the seed, or as written."
    )
    seed: t.Annotated[int, pydantic.Field(ge=0)] = pydantic.Field(
        default=0, description="Seed of the random order. It is recorded in the plan."
    )
    command: Command | None = pydantic.Field(
        default=None, description="Shell command that every host of a trial runs. A template."
    )
    environment: dict[VariableName, Text] = pydantic.Field(
        default={}, description="Environment variables of every command. Values may be templates."
    )
    user: Login | None = pydantic.Field(default=None, description="Login name that runs the commands. Left out: root.")
    timeout: Duration = pydantic.Field(
        default=120, description="How long the commands of one trial may run: seconds, or with a unit (2m)."
    )
    network: dict[str, dict[str, Link]] = pydantic.Field(
        default={},
        description="What lies between two ends, each a group, a site, a host (party-0) or all: {party: {party: {rtt: 80ms}}}.",
    )
    timeline: list[Moment] = pydantic.Field(
        default=[], description="What changes while a trial runs, in the order of time."
    )
    network_check: NetworkCheck = pydantic.Field(
        default_factory=NetworkCheck, description="How the network is measured, and what follows when it is off."
    )
    barrier: Barrier = pydantic.Field(default_factory=Barrier, description="When a trial may start, and when it stops.")
    collect: list[Glob] = pydantic.Field(
        default=[],
        description="Files to keep besides stdout and stderr: globs below the working directory of each host.",
    )
    expires_after: Duration | None = pydantic.Field(
        default=None,
        description="Hosts power off this long after the run began. Left out: twice the longest time, and 1 h.",
    )

    @property
    def networks(self) -> dict[str, str]:
        """Each site's CIDR; sites that give none get 10.77.0.0/16, 10.78.0.0/16 ... by their position."""
        sites = self.sites or {"default": Site()}
        return {name: site.cidr or f"10.{77 + position}.0.0/16" for position, (name, site) in enumerate(sites.items())}

    def network_rules(
        self, moments: t.Iterable[tuple[int, Moment]] | None = None
    ) -> t.Iterator[tuple[Path, str, str, Link]]:
        """Every rule of the network, those of the start first, with its place and its two ends.

        `moments` are those of the timeline with the index that each has in the file, if some were cut out.
        """
        parts: list[tuple[Path, dict[str, dict[str, Link]]]] = [(("network",), self.network)]
        moments = enumerate(self.timeline) if moments is None else moments
        parts += [(("timeline", index, "network"), moment.network) for index, moment in moments]
        for place, network in parts:
            for one, others in network.items():
                for other, link in others.items():
                    yield (*place, one, other), one, other, link

    def meeting_group(self, groups: t.Sequence[str]) -> str:
        """Which of the groups has the rendezvous, on its first host."""
        return self.rendezvous or ("coordinator" if "coordinator" in groups else groups[0])


# --- reading and checking ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A checked experiment. `source` is its path, relative to the project where it is in it."""

    name: str
    source: str
    spec: ExperimentFile
    document: Document
    topologies: t.Mapping[str, _network_profile.Topology] = dataclasses.field(default_factory=dict)

    @property
    def axes(self) -> dict[str, list[Scalar]]:
        """The parameters that are swept, in the order of the file."""
        return {name: value for name, value in self.spec.parameters.items() if isinstance(value, list)}

    @property
    def constants(self) -> dict[str, Scalar]:
        """The parameters that are not."""
        return {name: value for name, value in self.spec.parameters.items() if not isinstance(value, list)}


def load_experiment(
    text: str,
    source: str,
    overrides: str = "",
    *,
    exists: t.Callable[[str], bool] = lambda path: True,
    read: t.Callable[[str], str] = lambda path: pathlib.Path(path).read_text(encoding="utf-8"),
) -> Experiment:
    """Check an experiment and everything it names.

    Args:
        text: the file's content.
        source: the file's path, as problems name it and as artifacts are relative to; relative to the project, or
            absolute.
        overrides: what ``-e set=...`` gave: ``path=value`` with YAML values, between commas.
        exists: whether a path (relative to the project, or absolute) is there.
        read: the text of such a path; for topology files.

    Raises:
        ExperimentError: with every problem that there is.
        RequirementError: there is no pydantic.
    """
    require(pydantic, "an experiment")
    name = pathlib.PurePath(source).stem
    if len(text) > _MAX_TEXT:
        raise ExperimentError([Problem(source, None, "", "is too large for an experiment", "Is this the right file?")])
    document = parse(text, source)
    if document.data is not None and not isinstance(document.data, dict):
        document.problems.append(
            document.problem((), "is not a mapping of keys to values", "docs/experiment.md shows a short experiment.")
        )
    if not isinstance(document.data, dict):
        raise ExperimentError(document.problems)
    wanted, problems = parse_overrides(overrides)
    document = apply_overrides(document, wanted, fixed=("groups", "sites", "parameters"))
    problems += document.problems
    if not EXPERIMENT_NAME.fullmatch(name):
        remedy = "Rename the file: lower-case letters, digits, - and _, 40 characters at most, a letter or digit first."
        problems.append(Problem(source, None, "", f"{name!r} cannot name an experiment", remedy))
    spec, found, pruned = _validate(document)
    problems += found
    if spec is not None:
        problems += _check(spec, document, source, exists, problems, pruned)
    if problems or spec is None:
        raise ExperimentError(problems)
    return Experiment(name, source, spec, document, _topologies(spec, document, source, read))


def _validate(document: Document) -> tuple[ExperimentFile | None, list[Problem], set[Path]]:
    """The model of the data without the parts that are wrong, so that the rest can be checked in the same go.

    Returns:
        The model, or None where nothing is left of it; the problems; the paths of the parts that were cut out.
    """
    data = copy.deepcopy(document.data)
    problems: list[Problem] = []
    pruned = {path for path in document.unreadable if path and _prune(data, path)}
    while True:
        try:
            return ExperimentFile.model_validate(data), problems, pruned
        except pydantic.ValidationError as exc:
            errors = exc.errors(include_url=False)
        progress = False
        for error in errors:
            loc = tuple(part for part in error["loc"] if part != "[key]")
            # Not what the user did, but what cutting out a wrong part led to.
            if not any(path[: len(loc)] == loc or loc[: len(path)] == path for path in pruned):
                problems.append(_problem(document, loc, error))
        for error in sorted(errors, key=lambda e: _order(e["loc"]), reverse=True):
            loc = tuple(part for part in error["loc"] if part != "[key]")
            path = loc[:-1] if error["type"] == "missing" else loc
            if path and path not in pruned:
                progress |= _prune(data, path)
                pruned.add(path)
        if not progress:
            return None, problems, pruned


def _order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts paths so that, from the end, an item of a list is cut out before those that stand above it."""
    return [(isinstance(part, int), part if isinstance(part, int) else 0, str(part)) for part in path]


def _prune(data: t.Any, path: Path) -> bool:
    *parents, last = path
    for part in parents:
        data = _item(data, part)
    if isinstance(data, dict) and last in data:
        del data[last]
        return True
    if isinstance(data, list) and isinstance(last, int) and last < len(data):
        del data[last]
        return True
    return False


def _item(data: t.Any, part: str | int) -> t.Any:
    if isinstance(data, dict):
        return data.get(part)
    return data[part] if isinstance(data, list) and isinstance(part, int) and part < len(data) else None


_KINDS: t.Final = {
    "string_type": "a text", "int_type": "a whole number", "int_from_float": "a whole number", "list_type": "a list",
    "dict_type": "a mapping", "model_type": "a mapping", "model_attributes_type": "a mapping",
}  # fmt: skip


def _problem(document: Document, loc: Path, error: t.Any) -> Problem:
    """A pydantic error in the user's words."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    description = _description(loc)
    if kind == "startline":
        return document.problem(loc, context["message"], context["remedy"])
    if kind == "extra_forbidden":
        remedy = did_you_mean(str(loc[-1]), _keys(loc[:-1]), "Known here")
        return document.problem(loc, "is not a key that means anything here", remedy)
    if kind == "missing":
        return document.problem(loc, "is missing", description)
    if kind == "literal_error":
        choices = [choice.strip(" '") for choice in re.split(r",| or ", context["expected"])]
        return document.problem(loc, f"must be {' or '.join(choices)}, not {_shown(value)}", description)
    if kind == "greater_than_equal":
        return document.problem(loc, f"must be at least {context['ge']}, not {_shown(value)}", description)
    if kind in ("too_short", "string_too_short"):
        return document.problem(loc, "is empty", description)
    if kind in _KINDS:
        given = "nothing" if value is None else _shown(value)
        hint = f'Quote it: "{_template.as_text(value)}". ' if kind == "string_type" and _is_scalar(value) else ""
        return document.problem(loc, f"must be {_KINDS[kind]}, not {given}", hint + description)
    return document.problem(loc, str(error["msg"]).lower(), description)


def _type_at(path: Path) -> t.Any:
    """The type that the model has at `path`, and the field that describes it."""
    current: t.Any = ExperimentFile
    field: pydantic.fields.FieldInfo | None = None
    for part in path:
        current = _bare(current)
        if isinstance(current, type) and issubclass(current, _Model):
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        else:
            current = t.get_args(current)[-1] if t.get_args(current) else None
    return _bare(current), field


def _bare(annotation: t.Any) -> t.Any:
    while t.get_origin(annotation) in (t.Annotated, t.Union, types.UnionType):
        annotation = next(arg for arg in t.get_args(annotation) if arg is not types.NoneType)
    return annotation


def _keys(path: Path) -> list[str]:
    model, _field = _type_at(path)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, _Model) else []


def _description(path: Path) -> str:
    model, field = _type_at(path)
    text = field.description if field else None
    return (
        text
        or (model.__doc__ if isinstance(model, type) and issubclass(model, _Model) else None)
        or "docs/experiment.md tells its form."
    )


# --- checks beyond single values --------------------------------------------------------------------------------------


def _check(
    spec: ExperimentFile,
    document: Document,
    source: str,
    exists: t.Callable[[str], bool],
    known: t.Sequence[Problem],
    pruned: t.Collection[Path],
) -> list[Problem]:
    # Names come from what the user wrote, not from the model: a group with one wrong key is still a declared group.
    names = _Names(
        pruned=pruned,
        groups=_declared(document, "groups"),
        sites=_declared(document, "sites"),
        parameters=_declared(document, "parameters"),
    )
    return [
        *_check_sites(spec, document),
        *_check_gateways(spec, document, names),
        *_check_groups(spec, document, names, known),
        *_check_quorum(spec, document, names),
        *_check_artifacts(spec, document, names, source, exists),
        *_check_network(spec, document, names, source, exists),
        *_check_timeline(spec, document, names),
        *_check_parameters(spec, document, names),
        *_check_templates(spec, document, names),
    ]


@dataclasses.dataclass(frozen=True)
class _Names:
    """What the user declared, and which of it was cut out of the model."""

    pruned: t.Collection[Path]
    groups: tuple[str, ...]
    sites: tuple[str, ...]
    parameters: tuple[str, ...]

    def items(self, key: str, values: t.Sequence[_Item]) -> t.Iterator[tuple[int, _Item]]:
        """The items of a list with the index that each has in the file."""
        kept = (index for index in itertools.count() if (key, index) not in self.pruned)
        return zip(kept, values, strict=False)


def _declared(document: Document, key: str) -> tuple[str, ...]:
    section = document.data.get(key)
    return tuple(str(name) for name in section) if isinstance(section, dict) else ()


_PRIVATE: t.Final = tuple(ipaddress.IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))


def _check_sites(spec: ExperimentFile, document: Document) -> t.Iterator[Problem]:
    networks: dict[str, ipaddress.IPv4Network] = {}
    if len(spec.sites) > 100:
        yield document.problem(("sites",), f"has {len(spec.sites)} sites", "100 are the limit.")
        return
    for name, cidr in spec.networks.items():
        path: Path = ("sites", name, "cidr")
        try:
            network = ipaddress.IPv4Network(cidr)
        except ValueError as exc:
            yield document.problem(
                path, f"is not an IPv4 network: {exc}", "For example 10.77.0.0/16, with zeros after the prefix."
            )
            continue
        if not 16 <= network.prefixlen <= 28 or not any(network.subnet_of(private) for private in _PRIVATE):
            remedy = "AWS takes /16 to /28; use one within 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16."
            yield document.problem(path, f"cannot be the network of a site: {cidr}", remedy)
            continue
        other = next((known for known, taken in networks.items() if taken.overlaps(network)), None)
        if other:
            yield document.problem(
                path, f"{cidr} overlaps the network of site {other}", "Give each site a network of its own."
            )
        networks[name] = network


def _check_gateways(spec: ExperimentFile, document: Document, names: _Names) -> t.Iterator[Problem]:
    only_site = names.sites[0] if len(names.sites) == 1 else None
    home = {name: group.site or only_site for name, group in spec.groups.items()}
    for name, site in spec.sites.items():
        gateway = site.gateway
        path: Path = ("sites", name, "gateway")
        if gateway is None:
            continue
        if gateway not in names.groups:
            yield document.problem(
                path, f"{gateway} is not a group", did_you_mean(gateway, names.groups, "Declared groups")
            )
        elif home.get(gateway) not in (name, None):
            own = [group for group, where in home.items() if where == name]
            message = f"{gateway} is in site {home[gateway]}, so it leads to nobody here"
            yield document.problem(path, message, f"Groups of {name}: {listed(own)}.")
        else:
            yield from _check_meeting(spec, document, names, home, name, gateway)
        with contextlib.suppress(ValueError):  # of what is no network _check_sites tells
            network = ipaddress.IPv4Network(spec.networks[name])
            if network.prefixlen == 28:
                message = f"{network} cannot be halved, and a private site has two subnets of /28 at least"
                yield document.problem(("sites", name, "cidr"), message, "Give a /27 or larger, or leave it out.")


def _check_meeting(
    spec: ExperimentFile,
    document: Document,
    names: _Names,
    home: t.Mapping[str, str | None],
    private: str,
    gateway: str,
) -> t.Iterator[Problem]:
    """Refuse a rendezvous behind a gateway when others come to it from outside."""
    meeting = spec.meeting_group(names.groups)
    if home.get(meeting) != private or meeting == gateway:
        return
    others = [
        name
        for name, site in spec.sites.items()
        if name != private and name in home.values() and (site.transport or spec.barrier.transport) == "tcp"
    ]
    if others:
        message = f"{meeting}-0 is the rendezvous, and behind the gateway {listed(others)} cannot reach it by tcp"
        remedy = f"Give transport: s3 to {listed(others)}, or name another group as rendezvous: {gateway}."
        yield document.problem(("sites", private, "gateway"), message, remedy)


def _check_groups(
    spec: ExperimentFile, document: Document, names: _Names, known: t.Sequence[Problem]
) -> t.Iterator[Problem]:
    for name, group in spec.groups.items():
        path: Path = ("groups", name)
        if name in _RESERVED_GROUPS or name.startswith(("site_", "run_", "experiment_")):
            yield document.problem(
                path, f"{name} is a group that Ansible or Startline makes itself", "Choose another name."
            )
        if group.site is not None and group.site not in names.sites:
            remedy = did_you_mean(group.site, names.sites, "Declared sites")
            yield document.problem((*path, "site"), f"{group.site} is not declared in sites", remedy)
        if group.site is None and len(names.sites) > 1:
            yield document.problem(
                (*path, "site"), "is missing, and there is more than one", f"Declared sites: {listed(names.sites)}."
            )
        has_command = (
            group.command
            or spec.command
            or "command" in document.data
            or "command" in (document.data["groups"][name] or {})
        )
        if not has_command:
            remedy = "Give the experiment a command, or each of its groups."
            yield document.problem((*path, "command"), f"{name} has nothing to run", remedy)
        image = group.image
        complete = (
            image is None
            or (image.id and not image.name and not image.owner)
            or (image.name and image.owner and not image.id)
        )
        place = format_path((*path, "image"))
        if not complete and not any(problem.path.startswith(place) for problem in known):
            yield document.problem((*path, "image"), "names no image", "Give either id, or both name and owner.")
    if spec.rendezvous is not None and spec.rendezvous not in names.groups:
        remedy = did_you_mean(spec.rendezvous, names.groups, "Declared groups")
        yield document.problem(("rendezvous",), f"{spec.rendezvous} is not a group", remedy)


def _check_quorum(spec: ExperimentFile, document: Document, names: _Names) -> t.Iterator[Problem]:
    quorum = spec.barrier.quorum
    path: Path = ("barrier", "quorum")
    if isinstance(quorum, int) and len(names.groups) > 1:
        remedy = f"Say of which group: {{{names.groups[0]}: {quorum}}}. A percentage is of each."
        yield document.problem(path, f"{quorum} of the hosts of {len(names.groups)} groups", remedy)
    for group in quorum if isinstance(quorum, dict) else ():
        if group not in names.groups:
            remedy = did_you_mean(group, names.groups, "Declared groups")
            yield document.problem((*path, group), f"{group} is not a group", remedy)


def _check_artifacts(
    spec: ExperimentFile, document: Document, names: _Names, source: str, exists: t.Callable[[str], bool]
) -> t.Iterator[Problem]:
    users: dict[tuple[str, str], int] = {}
    for index, artifact in names.items("artifacts", spec.artifacts):
        path: Path = ("artifacts", index)
        where, dest = artifact.path(source), artifact.name
        if not exists(where):
            remedy = "src is relative to the experiment file." + (
                " ~ is not filled in." if artifact.src.startswith("~") else ""
            )
            yield document.problem((*path, "src"), f"there is no file or directory {where}", remedy)
        if not re.fullmatch(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}", dest):
            remedy = "Give dest: one name of letters, digits, dot, _ and -."
            yield document.problem((*path, "dest"), f"{_shown(dest)} cannot be a name in the working directory", remedy)
        if dest in _RESERVED_FILES:
            yield document.problem(
                (*path, "dest"), f"{dest} is a file that Startline writes itself", "Choose another dest."
            )
        for group in artifact.groups or names.groups:
            if group not in names.groups:
                remedy = did_you_mean(group, names.groups, "Declared groups")
                yield document.problem((*path, "groups"), f"{group} is not a group", remedy)
            elif (group, dest) in users:
                first = format_path(("artifacts", users[group, dest]))
                yield document.problem(
                    (*path, "dest"), f"{group} has {dest} from {first} already", "Choose another dest."
                )
            users.setdefault((group, dest), index)


def _check_timeline(spec: ExperimentFile, document: Document, names: _Names) -> t.Iterator[Problem]:
    before: float = 0
    for index, moment in names.items("timeline", spec.timeline):
        path: Path = ("timeline", index, "at")
        if moment.at <= before:
            yield document.problem(path, "is not later than the moment before it", "Write them in the order of time.")
        if moment.at >= spec.timeout:
            remedy = "Make it earlier, or timeout longer."
            yield document.problem(path, f"comes when the trial's time ({spec.timeout:g} s) is over", remedy)
        before = moment.at


def _check_network(
    spec: ExperimentFile, document: Document, names: _Names, source: str, exists: t.Callable[[str], bool]
) -> t.Iterator[Problem]:
    if "network_check" in document.data and not (document.data.get("network") or document.data.get("timeline")):
        yield document.problem(("network_check",), "there is no network to check", "Give the network, or remove this.")
    ends = (_netem.ALL, *names.groups, *names.sites)
    for path, one, other, link in spec.network_rules(names.items("timeline", spec.timeline)):
        for end, where in ((one, path[:-1]), (other, path)):
            if end in names.groups and end in names.sites:
                yield document.problem(where, f"{end} is a group and a site", "Rename one of them.")
            elif end not in ends and end.rpartition("-")[0] not in names.groups:
                remedy = f"{did_you_mean(end, ends, 'There are')} Or a host, as in {names.groups[0]}-0."
                yield document.problem(where, f"{end} is not a group, a site or a host", remedy)
        if link.rtt is not None and link.delay is not None:
            remedy = "Give one: rtt is both directions together, delay is each."
            yield document.problem(path, "has both rtt and delay", remedy)
        if link.rtt is not None and link.oneway:
            yield document.problem((*path, "rtt"), "a one-way link has no round trip", "Give its delay.")
        yield from _check_profile(link.profile, document, (*path, "profile"), source, exists)


def _check_profile(
    profile: str | None, document: Document, path: Path, source: str, exists: t.Callable[[str], bool]
) -> t.Iterator[Problem]:
    if profile is None or _template.is_template(profile) or profile in (*_network_profile.NAMES, _netem.NONE):
        return
    if not profile.endswith(".json"):
        remedy = did_you_mean(profile, _network_profile.NAMES, "Profiles") + " Or a topology file, ending in .json."
        yield document.problem(path, f"{profile} is not a profile", remedy)
    elif not exists(_beside(source, profile)):
        yield document.problem(
            path, f"there is no file {_beside(source, profile)}", "It is relative to the experiment file."
        )


def _topology_files(profile: str | None, spec: ExperimentFile) -> list[str]:
    """The topology files that a profile names: itself, or what its template comes to with all values of its parameters."""
    if profile is None:
        return []
    names = {profile}
    if _template.is_template(profile):
        axes = []
        for name in sorted(_template.undeclared(profile)):
            given = spec.parameters.get(name)
            own = [point[name] for point in spec.include if name in point]
            axes.append([(name, value) for value in [*(given if isinstance(given, list) else [given]), *own]])
        names = {_template.render(profile, dict(point)).strip() for point in itertools.product(*axes)}
    return sorted(name for name in names if name.endswith(".json"))


def _topologies(
    spec: ExperimentFile, document: Document, source: str, read: t.Callable[[str], str]
) -> dict[str, _network_profile.Topology]:
    """The topology files that the network names, by the name it gives them.

    Raises:
        ExperimentError: what is wrong in them.
    """
    topologies: dict[str, _network_profile.Topology] = {}
    problems: list[Problem] = []
    known = {_network_profile.node_key(name) for name in (*spec.groups, *spec.sites)}
    for place, _one, _other, link in spec.network_rules():
        path: Path = (*place, "profile")
        for name in _topology_files(link.profile, spec):
            try:
                topology = _network_profile.parse_topology(read(_beside(source, name)))
            except FileNotFoundError:
                where = f"there is no file {_beside(source, name)}"
                problems.append(document.problem(path, where, "It is relative to the experiment file."))
                continue
            except (OSError, UnicodeDecodeError, _network_profile.ProfileError) as exc:
                problems.append(document.problem(path, f"{name}: {exc}", "docs/network.md shows the form."))
                continue
            topologies[name] = topology
            for key, node in topology.nodes.items():
                if key not in known:
                    message = f"{name}: there is no group or site for node {node}"
                    remedy = (
                        did_you_mean(node, (*spec.groups, *spec.sites), "There are") + " Case, - and _ do not count."
                    )
                    problems.append(document.problem(path, message, remedy))
    if problems:
        raise ExperimentError(problems)
    return topologies


def _check_parameters(spec: ExperimentFile, document: Document, names: _Names) -> t.Iterator[Problem]:
    for name in spec.parameters:
        path: Path = ("parameters", name)
        if name in _template.HOST_VARIABLES:
            remedy = f"Choose another name; these are set for every host: {', '.join(_template.HOST_VARIABLES)}."
            yield document.problem(path, f"{name} is what a host knows about itself", remedy)
        if name.lower() in _template.JINJA_NAMES:
            yield document.problem(path, f"{name} is a word of the template language", "Choose another name.")
    axes = {name: value for name, value in spec.parameters.items() if isinstance(value, list)}
    for index, entry in names.items("exclude", spec.exclude):
        for name, value in entry.items():
            path = ("exclude", index, name)
            if name not in names.parameters:
                yield document.problem(path, f"{name} is not a parameter", did_you_mean(name, axes, "Axes"))
            elif name in spec.parameters and name not in axes:
                yield document.problem(
                    path, f"{name} has one value only, so it tells no points apart", f"Axes: {listed(axes)}."
                )
            elif name in axes and value not in axes[name]:
                shown = listed(_shown(item) for item in axes[name])
                yield document.problem(path, f"{_shown(value)} is not a value of the axis", f"Its values: {shown}.")
    for index, entry in names.items("include", spec.include):
        for name in entry:
            if name not in names.parameters:
                remedy = did_you_mean(name, names.parameters, "Parameters")
                yield document.problem(("include", index, name), f"{name} is not a parameter", remedy)
        lacking = [name for name in axes if name not in entry]
        if lacking:
            remedy = f"A point names every axis: {listed(axes)}."
            yield document.problem(("include", index), f"says nothing of {listed(lacking)}", remedy)


def _check_templates(spec: ExperimentFile, document: Document, names: _Names) -> t.Iterator[Problem]:
    for_hosts = tuple(dict.fromkeys((*names.parameters, *_template.HOST_VARIABLES)))
    used: set[str] = set()
    broken = False
    for path, text, known in _templates(spec, for_hosts, names.parameters):
        try:
            wanted = _template.undeclared(text)
        except _template.TemplateProblem as exc:
            broken = True
            yield document.problem(path, str(exc), "Templates are Jinja2: {{ name }}, {{ count + 1 }}, {% if ... %}.")
            continue
        used |= wanted
        for name in sorted(wanted - set(known)):
            broken = True
            if name in _template.HOST_VARIABLES:
                message = f"{name} differs from host to host, so it is not known here"
                yield document.problem(path, message, f"Only parameters are: {listed(names.parameters)}.")
            else:
                yield document.problem(
                    path, f"the template names {name}, which is not known", did_you_mean(name, known, "Known")
                )
    # A wrong name is likely to be the axis that seems unused: one problem is enough.
    for name, value in spec.parameters.items():
        if isinstance(value, list) and name not in used and not broken:
            remedy = (
                f"Use {{{{ {name} }}}} in a command, an environment or a count; for the same trial again, use repeats."
            )
            yield document.problem(
                ("parameters", name), "is an axis that no template uses: its points would all be the same", remedy
            )


def _templates(
    spec: ExperimentFile, for_hosts: tuple[str, ...], for_points: tuple[str, ...]
) -> t.Iterator[tuple[Path, str, tuple[str, ...]]]:
    """Every template, where it stands, and the names it may use."""
    if spec.command:
        yield ("command",), spec.command, for_hosts
    for variable, value in spec.environment.items():
        yield ("environment", variable), value, for_hosts
    for name, group in spec.groups.items():
        if isinstance(group.count, str):
            yield ("groups", name, "count"), group.count, for_points
        if group.command:
            yield ("groups", name, "command"), group.command, for_hosts
        for variable, value in group.environment.items():
            yield ("groups", name, "environment", variable), value, for_hosts
    for path, _one, _other, link in spec.network_rules():
        for key, value in link.model_dump(exclude_none=True).items():
            if _template.is_template(value):
                yield (*path, key), value, for_points


# --- experiments of a project -----------------------------------------------------------------------------------------


def find_experiment(exp: str, names: t.Sequence[str], is_file: t.Callable[[str], bool]) -> str:
    """The path of the experiment that the user means: a name of experiments/, or the path of a file.

    Args:
        exp: what ``-e exp=`` gave.
        names: the experiments that there are.
        is_file: whether a path, relative to the project or absolute, is a file.
    """
    if exp in names:
        return f"experiments/{exp}.yml"
    if "/" in exp or exp.endswith((".yml", ".yaml")):
        if is_file(exp):
            return os.path.normpath(exp)
        problem = Problem(
            "-e exp",
            None,
            "",
            f"there is no file {exp}",
            f"Experiments here: {listed(names)}. Or give the path of a file.",
        )
    else:
        problem = Problem(
            "-e exp",
            None,
            "",
            f"there is no experiment {exp!r}",
            did_you_mean(exp, names, "There are") + " Or give the path of a file.",
        )
    raise ExperimentError([problem])


def json_schema() -> str:
    """The JSON Schema of experiment files, for editors; as it is committed."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **ExperimentFile.model_json_schema(),
        "title": "Startline experiment",
    }
    return json.dumps(_tidy(schema), indent=2, ensure_ascii=False) + "\n"


def _tidy(node: t.Any) -> t.Any:
    """Without pydantic's titles, which repeat the keys, and with names as strict as the model has them."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {
        key: _tidy(value)
        for key, value in node.items()
        if key != "title" or not isinstance(value, str) or "$schema" in node
    }
    if len(tidy.get("allOf", ())) == 1:  # how releases of pydantic before 2.9 describe a reference
        tidy = {**tidy.pop("allOf")[0], **tidy}
    return {**tidy, "additionalProperties": False} if "patternProperties" in tidy else tidy


if __name__ == "__main__":
    import sys

    sys.stdout.write(json_schema())
