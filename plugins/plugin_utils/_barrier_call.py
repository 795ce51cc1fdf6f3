# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of a trial: what is submitted, how long to wait, what to say of the answer. Pure.

This util is PRIVATE to the collection.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import typing as t

from ansible_collections.startline.lab.plugins.module_utils._agent import barrier, wire

#: Seconds beyond the trial's own deadlines for everything between the controller and the rendezvous.
SLACK: t.Final = 30.0
#: Seconds after the last command's end within which the evidence is delivered.
DELIVERY_DEADLINE: t.Final = 600.0
#: Names that a message shows before it says how many more there are.
SHOWN: t.Final = 12


class SubmissionError(Exception):
    """The arguments do not make a trial; the text says which and why."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of one attempt to ask the rendezvous: a result, or a problem that may (`again`) pass."""

    result: dict[str, t.Any] | None = None
    problem: str = ""
    again: bool = False


def submission(arguments: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """The action's validated arguments as `wire.SUBMISSION`. What YAML made of environment values is text again."""
    trial = dict(arguments)
    trial["members"] = [
        {**member, "environment": {str(k): _text(v) for k, v in (member.get("environment") or {}).items()}}
        for member in arguments["members"]
    ]
    for name in ("files", "links"):
        trial[name] = {str(path): str(value) for path, value in (arguments.get(name) or {}).items()}
    trial["site_files"] = {
        str(site): {str(path): str(value) for path, value in files.items()}
        for site, files in (arguments.get("site_files") or {}).items()
    } or None
    trial["user"] = arguments.get("user") or None
    # What only one of the actions that submit trials says.
    return {"form": False, "formed_from": None, "network_check": None, "delivery_deadline": DELIVERY_DEADLINE, **trial}


def check(trial: t.Mapping[str, t.Any]) -> None:
    """Raise `SubmissionError` unless the rendezvous would take `trial`."""
    try:
        wire.checked(trial, wire.SUBMISSION, "trial")
    except wire.WireError as error:
        raise SubmissionError(str(error).replace("trial.", "", 1)) from error
    problem = barrier.seats_problem(trial)
    if problem is not None:
        raise SubmissionError(problem)
    ranks = collections.Counter(member["rank"] for member in trial["members"])
    twice = sorted(rank for rank, times in ranks.items() if times > 1)
    if twice and not trial["seats"]:  # who steps in for another may have its rank
        raise SubmissionError(f"members: the rank {', '.join(map(str, twice))} is there more than once")


def time_limit(trial: t.Mapping[str, t.Any], wait: str) -> float:
    """Seconds after which even the slowest trial must have a result."""
    limit = trial["deadline"] + barrier.LEAD_MAX_NS / 1e9 + trial["timeout"] + wire.STOP_GRACE + barrier.EXIT_SLACK
    return float(limit + (trial["delivery_deadline"] if wait == "delivered" else 0) + SLACK)


def parse(code: int, output: str, errors: str) -> Answer:
    """What the command on the coordinator says."""
    if code == 0:
        # Something of the login shell may stand before it.
        for line in reversed(output.strip().splitlines()):
            try:
                result = json.loads(line)
            except ValueError:
                continue
            if isinstance(result, dict) and result.get("format", "").startswith("startline-trial/"):
                return Answer(result=result)
        return Answer(problem=f"the rendezvous' answer is not a trial: {output[-500:].strip()}")
    said = [line for line in errors.strip().splitlines() if line.startswith("startline-agent: ")]
    problem = (
        said[-1].removeprefix("startline-agent: ") if said else f"exit {code}: {(errors or output)[-500:].strip()}"
    )
    if code == 127:
        return Answer(problem=f"startline-agent is not installed on the coordinator ({problem})")
    # 255 is ssh's own, and a signal means that the connection's other end was taken away: both may pass.
    return Answer(problem=problem, again=code >= 128 or code < 0 or "cannot reach the rendezvous" in problem)


def judged(result: dict[str, t.Any]) -> dict[str, t.Any]:
    """The action's result: trial.json, a message, and whether it failed."""
    if "format" not in result:
        return result  # nothing is known
    name = f"{result['epoch']['trial']}" + (
        f" (attempt {result['epoch']['attempt']})" if result["epoch"]["attempt"] > 1 else ""
    )
    found = dict(result)
    if result.get("outcome") in ("aborted", "reform"):
        found.update(failed=True, msg=f"{name}: nobody was started. {_joined(result['reasons'])}")
    elif result.get("verdict") == "invalid":
        found.update(failed=True, msg=f"{name}: invalid. {_joined(result['reasons'])}")
    else:
        found["msg"] = f"{name}: {result.get('verdict')}; {_started(result)}"
        if result.get("reasons"):
            found["msg"] += f". {_joined(result['reasons'])}"
    return found


def unknown(trial: t.Mapping[str, t.Any], answer: Answer, limit: float) -> dict[str, t.Any]:
    """The result when the rendezvous could not be asked, or refuses the trial: nothing is known of any member."""
    names = [member["name"] for member in trial["members"]]
    attach = " The trial may be under way: the same task attaches to it." if answer.again else ""
    return {
        "failed": True,
        "msg": f"{trial['trial_id']}: no result: {answer.problem}. Nothing is known of {_names(names)}.{attach}",
        "epoch": {"run": trial["run_id"], "trial": trial["trial_id"], "attempt": trial["attempt"]},
        "waited_at_most_s": limit,
    }


def _started(result: t.Mapping[str, t.Any]) -> str:
    skew = result.get("skew")
    if not skew:
        return "nothing was started"
    bound = "unknown" if skew["bound_us"] is None else f"{skew['bound_us'] / 1e3:.1f} ms"
    return (
        f"{skew['n']} of {len(result['roster'])} started within {(skew['max_us'] - skew['min_us']) / 1e3:.1f} ms "
        f"(p50 {skew['p50_us'] / 1e3:.1f} ms, clocks known to {bound}), the last was {skew['last']}"
    )


def _joined(reasons: t.Sequence[str]) -> str:
    more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
    return "; ".join(reasons[:SHOWN]) + more


def _names(names: t.Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _text(value: t.Any) -> str:
    """A value of YAML as an environment variable's text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
