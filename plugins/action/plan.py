# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the plan of an experiment and open its run. Documented in plugins/modules/plan.py."""

from __future__ import annotations

import datetime as dt
import os
import pathlib
import typing as t

from ansible.utils.display import Display

from ansible_collections.startline.lab.plugins.plugin_utils import _experiment, _plan, _run
from ansible_collections.startline.lab.plugins.plugin_utils._action import Arguments, ControllerAction, Result
from ansible_collections.startline.lab.plugins.plugin_utils._artifact import packed
from ansible_collections.startline.lab.plugins.plugin_utils._errors import StartlineError


class ActionModule(ControllerAction):
    """Reads, checks and expands an experiment; then chooses the run, unless only the plan is wanted.

    See plugins/modules/plan.py.
    """

    ARGUMENT_SPEC: t.ClassVar = {
        "exp": {"type": "str"},
        "set": {"type": "str", "default": ""},
        "seed": {"type": "int"},
        "project_dir": {"type": "path", "required": True},
        "private_dir": {"type": "path"},
        "validate_only": {"type": "bool", "default": False},
        "run": {"type": "str"},
        "awx_job_id": {"type": "str"},
        "awx_workflow_job_id": {"type": "str"},
    }

    def perform(self, args: Arguments) -> Result:
        """Make the plan, open the run."""
        project = pathlib.Path(args["project_dir"]).absolute()
        store = _run.RunStore(pathlib.Path(args["private_dir"] or project / ".startline"))
        if args["exp"]:
            plan = make_plan(project, args["exp"], args["set"], args["seed"])
        elif args["run"]:
            plan = store.read_plan(args["run"])
            _plan.check_plan(plan)
        else:
            raise StartlineError(
                f"Which experiment? Give -e exp=NAME. There are: {', '.join(experiments(project)) or 'none'}."
            )
        result = {
            "changed": False,
            "experiment": plan["experiment"],
            "plan": plan,
            "summary": _plan.summary(plan),
        }
        if args["validate_only"] or self._task.check_mode:
            if not args["run"]:
                return result
            known = store.read(args["run"])
            return {**result, "resumed": True, **describe(known, store)}
        record, resumed, broken = _run.open_run(
            store,
            plan,
            artifacts=artifact_digests(project, plan),
            requested=args["run"] or None,
            awx=_run.awx_run_id(plan["experiment"], args["awx_job_id"], args["awx_workflow_job_id"]),
            # Actions run in a worker, which is a child of the process that leads the play.
            controller=_run.this_controller(os.getppid()),
            now=dt.datetime.now(dt.UTC),
            entropy=os.urandom(2),
        )
        for name in broken:
            Display().warning(f"The record of run {name} in {store.path(name)} cannot be read; the run is passed over.")
        return {**result, "changed": not resumed, "resumed": resumed, **describe(record, store)}

    def subject(self, args: Arguments) -> str:
        """The project."""
        return str(args["project_dir"])


def describe(record: _run.RunRecord, store: _run.RunStore) -> dict[str, str]:
    """What later stages need to know of a run."""
    return {
        "run_id": record.run_id,
        "created": record.created,
        "expires": record.expires,
        "run_dir": str(store.path(record.run_id)),
    }


def artifact_digests(project: pathlib.Path, plan: dict[str, t.Any]) -> dict[str, str]:
    """The sha256 of what each artifact of a plan holds now, by its path in the plan."""
    digests = {}
    for artifact in plan["artifacts"]:
        with packed(project / artifact["src"]) as ready:
            digests[artifact["src"]] = ready.sha256
    return digests


def experiments(project: pathlib.Path) -> list[str]:
    """The names of the experiments of a project."""
    return sorted(path.stem for path in (project / "experiments").glob("*.yml"))


def make_plan(project: pathlib.Path, exp: str, overrides: str, seed: int | None) -> dict[str, t.Any]:
    """The plan of the experiment that `exp` names: one of the project's, or the path of a file.

    A path is relative to the current directory, as the user typed it, or to the project.
    """
    typed = pathlib.Path(exp).expanduser().absolute()
    if typed.is_file() and exp not in experiments(project):
        exp = str(typed.relative_to(project)) if typed.is_relative_to(project) else str(typed)
    source = _experiment.find_experiment(exp, experiments(project), lambda path: (project / path).is_file())
    try:
        text = (project / source).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise StartlineError(f"{source}: is not UTF-8 (byte {exc.start}): save it as UTF-8") from exc
    experiment = _experiment.load_experiment(
        text,
        source,
        overrides,
        exists=lambda path: (project / path).exists(),
        read=lambda path: (project / path).read_text(encoding="utf-8"),
    )
    return _plan.expand(experiment, seed=seed)
