# SPDX-License-Identifier: GPL-3.0-or-later
"""Evidence: what is missing is named, what is there is verified, and nothing is called valid that is not."""

from __future__ import annotations

import json
import pathlib
import typing as t

import boto3
import moto
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.startline.lab.plugins.module_utils._agent import mailbox
from ansible_collections.startline.lab.plugins.plugin_utils import _evidence
from ansible_collections.startline.lab.plugins.plugin_utils._evidence import EvidenceError, Store
from tests.support import synthetic as syn

PLAN = syn.plan()
IDS = [trial["trial_id"] for trial in PLAN["trials"]]
FIRST = f"trials/{IDS[0]}/1"
PREFIX = f"dkg/{syn.RUN_ID}"


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, t.cast("list[float]", [])

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


def store(bucket: syn.Bucket, root: pathlib.Path, clock: Clock | None = None) -> Store:
    clock = clock or Clock()
    return Store(bucket, "bucket", PREFIX, root / PREFIX, sleep=clock.sleep, monotonic=clock.monotonic)


def collect(root: pathlib.Path, objects: syn.Objects, plan: t.Any = PLAN, **more: t.Any) -> dict[str, t.Any]:
    """run.json of a run that left `objects`."""
    return store(syn.Bucket(PREFIX, objects), root).collect(plan, syn.RUN_ID, **{"wait": 0, **more}).run


def first(run: dict[str, t.Any]) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", run["trials"][0])


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_all_is_well(tmp_path: pathlib.Path) -> None:
    run = collect(tmp_path, syn.run_objects(PLAN))
    assert (run["verdict"], run["reasons"]) == ("valid", [])
    figures = run["figures"]
    assert figures["trials"] == {"planned": 4, "valid": 4, "degraded": 0, "invalid": 0, "not_run": 0, "warmups": 0}
    assert figures["logs"] == {"expected": 16, "delivered": 16}
    assert figures["skew_us"]["n"] == 16
    assert figures["skew_us"]["p50"] <= figures["skew_us"]["max"]
    assert [(point["label"], point["n"]) for point in figures["durations"]] == [
        ("protocol=normal", 2),
        ("protocol=corrupted", 2),
    ]


Break = t.Callable[[syn.Objects], None]


def gone(*paths: str) -> Break:
    def apply(objects: syn.Objects) -> None:
        for path in paths:
            del objects[f"{FIRST}/{path}"]

    return apply


def row(member: str, **changes: t.Any) -> Break:
    return lambda objects: syn.edit_row(objects, f"{FIRST}/trial.json", member, **changes)


def head(**changes: t.Any) -> Break:
    return lambda objects: syn.edit(objects, f"{FIRST}/trial.json", **changes)


def meta(whose: str, **changes: t.Any) -> Break:
    return lambda objects: syn.edit(objects, f"{FIRST}/{whose}/meta.json", **changes)


def content(path: str, body: bytes) -> Break:
    return lambda objects: objects.update({f"{FIRST}/{path}": body})


def stranger(objects: syn.Objects) -> None:
    result = json.loads(objects[f"{FIRST}/trial.json"])
    result["members"]["party-9"] = result["members"]["party-0"]
    objects[f"{FIRST}/trial.json"] = syn.dump(result)


def absent(objects: syn.Objects) -> None:
    result = json.loads(objects[f"{FIRST}/trial.json"])
    del result["members"]["party-1"]
    objects[f"{FIRST}/trial.json"] = syn.dump(result)


def aborted(objects: syn.Objects) -> None:
    for key in [key for key in objects if key.startswith(f"{FIRST}/")]:
        del objects[key]
    objects.update(syn.aborted(PLAN["trials"][0], "party-2"))


OTHER = {"run": syn.RUN_ID, "trial": IDS[0], "attempt": 2}
UNKNOWN_CLOCK = {"source": "chrony", "offset_s": 0.0, "bound_s": 0.2}


@pytest.mark.parametrize(
    ("break_it", "verdict", "reason"),
    [
        (gone("party-1/stdout"), "invalid", "party-1: stdout missing"),
        (gone("party-1/stderr", "party-1/comm.log"), "invalid", "party-1: stderr, comm.log missing"),
        (gone("party-2/meta.json"), "invalid", "party-2: meta.json missing"),
        (gone("trial.json"), "invalid", "trial.json is missing"),
        (content("trial.json", b"{not json"), "invalid", "trial.json cannot be read"),
        (content("trial.json", b"[]"), "invalid", "trial.json cannot be read"),
        (content("party-0/meta.json", b"\xff\x00"), "invalid", "party-0: meta.json not as on the host"),
        (content("party-0/stdout", b"other"), "invalid", "party-0: stdout not as on the host"),
        (content("party-0/stderr", b" "), "invalid", "party-0: stderr not as on the host"),
        (meta("party-0", files=[]), "invalid", "party-0: stdout, stderr missing"),
        (meta("party-0", files=None), "invalid", "party-0: stdout, stderr missing"),
        (meta("party-0", epoch=OTHER), "invalid", "party-0: meta.json not as on the host"),
        (meta("party-0", rank=99), "invalid", "party-0: meta.json not as on the host"),
        (
            meta("party-0", skipped=[{"path": "big.log", "reason": "gone"}]),
            "invalid",
            "party-0: big.log (gone) missing",
        ),
        (meta("party-0", member="party-1"), "invalid", "party-0: meta.json not as on the host"),
        (
            row("party-0", files=[syn.entry("stdout", b"x"), syn.entry("stderr", b"")]),
            "invalid",
            "party-0: comm.log, stdout not as",
        ),
        (row("party-0", exit_code=3), "invalid", "party-0 exited with code 3"),
        (row("party-0", exit_code=None, signal=9), "invalid", "party-0 was ended by signal 9"),
        (row("party-0", timed_out=True), "invalid", "party-0 was still running at the end of its time"),
        (row("party-0", exit_code=None, state="fired"), "invalid", "party-0 has no exit code (last state: fired)"),
        (
            row("party-0", clock=UNKNOWN_CLOCK),
            "degraded",
            "party-0 has a clock known to 0.200 s only, more than 0.050 s",
        ),
        (row("party-0", clock=None), "degraded", "party-0 started on a clock that nobody has measured"),
        (
            head(verdict="degraded", reasons=["party-0: clock known to 0.100 s only"]),
            "degraded",
            "clock known to 0.100 s only",
        ),
        (head(verdict="invalid", reasons=["party-3 exited with code 1"]), "invalid", "party-3 exited with code 1"),
        (head(verdict="invalid"), "invalid", "trial.json gives no reason for its verdict"),
        (head(verdict="splendid"), "invalid", "trial.json gives no reason for its verdict"),
        (head(epoch=OTHER), "invalid", "trial.json is of another epoch"),
        (head(phase="running"), "invalid", "trial.json was written before the trial had settled"),
        (stranger, "invalid", "trial.json names members that the plan does not: party-9"),
        (head(roster=["party-0", "party-1", "blockchain-0"]), "invalid", "2 of party started, and 3 are needed"),
        (head(roster=None), "invalid", "0 of party started, and 3 are needed"),
        (absent, "invalid", "party-1 is not in trial.json"),
        (aborted, "invalid", "after 60 s not armed: party-2 (absent)"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: pathlib.Path, break_it: Break, verdict: str, reason: str) -> None:
    objects = syn.run_objects(PLAN)
    break_it(objects)
    run = collect(tmp_path, objects)
    assert first(run)["verdict"] == run["verdict"] == verdict
    assert len(run["reasons"]) == 1
    assert reason in run["reasons"][0]
    assert IDS[0] in run["reasons"][0]
    assert [trial["verdict"] for trial in run["trials"][1:]] == ["valid"] * 3


def test_what_the_rendezvous_says_is_not_said_again(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    row("party-0", exit_code=3)(objects)
    head(verdict="invalid", reasons=["party-0 exited with code 3: no such file"])(objects)
    assert first(collect(tmp_path, objects))["reasons"] == ["party-0 exited with code 3: no such file"]


def test_a_reservation_of_the_rendezvous_does_not_hide_a_failure(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    row("party-0", exit_code=3)(objects)
    head(verdict="degraded", reasons=["party-0: clock known to 0.1 s only"])(objects)
    assert first(collect(tmp_path, objects))["verdict"] == "invalid"


def test_a_clock_beyond_the_limit_is_refused_where_the_plan_says_so(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    plan["barrier"]["on_clock_error"] = "refuse"
    objects = syn.run_objects(plan)
    row("party-0", clock=UNKNOWN_CLOCK)(objects)
    assert collect(tmp_path, objects, plan)["verdict"] == "invalid"


def test_evidence_is_due_from_those_who_started(tmp_path: pathlib.Path) -> None:
    plan = syn.plan()
    for trial in plan["trials"]:
        trial.update(least={"party": 2, "blockchain": 1}, spares=["party-3"])
    plan["members"].append({"name": "party-3", "group": "party"})
    objects = syn.run_objects(plan)
    dropped = "party-1 was dropped (absent)"
    for key in [key for key in objects if key.startswith(f"{FIRST}/party-1/")]:
        del objects[key]
    row("party-1", state="absent", role="dropped", exit_code=None, late_us=None, files=[])(objects)
    head(roster=["party-0", "party-2", "blockchain-0"], verdict="degraded", reasons=[dropped])(objects)
    run = collect(tmp_path, objects, plan)
    trial = first(run)
    assert (trial["verdict"], trial["reasons"]) == ("degraded", [dropped])
    assert (trial["hosts"], trial["delivered"], trial["missing"]) == (3, 3, {})


SHAPED = syn.shaped(PLAN)


@pytest.mark.parametrize(
    ("off", "change", "verdict", "reason"),
    [
        ([], {}, "valid", ""),
        ([("party-0", "party-1")], {}, "degraded", "network: party-0 to party-1: rtt: 80 ms asked, 40"),
        ([], {"network": None}, "degraded", "network: network-1 was not measured"),
        ([], {"network": {"network": "network-2"}}, "degraded", "network: network-1 was not measured"),
        ([], {"network": {"network": "network-1", "pairs": 7}}, "degraded", "network: what was measured of the network"),
    ],
)  # fmt: skip
def test_the_network_is_judged_again_from_what_was_measured(
    tmp_path: pathlib.Path,
    off: list[tuple[str, str]],
    change: dict[str, t.Any],
    verdict: str,
    reason: str,
) -> None:
    objects = syn.run_objects(SHAPED)
    syn.put_network(objects, SHAPED, syn.measure(SHAPED, off))
    # Whatever the rendezvous has made of it.
    syn.edit(objects, f"{FIRST}/trial.json", verdict="valid", reasons=[], **change)
    evidence = first(collect(tmp_path / "mark", objects, SHAPED))
    assert evidence["verdict"] == verdict
    assert reason in "".join(evidence["reasons"])
    refused = {**SHAPED, "network_check": {**SHAPED["network_check"], "on_deviation": "refuse"}}
    if change:
        assert first(collect(tmp_path / "refuse", objects, refused))["verdict"] == "invalid"


def test_a_report_without_any_pair_is_no_measurement(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(SHAPED)
    syn.put_network(objects, SHAPED, {**syn.measure(SHAPED), "pairs": []})
    evidence = first(collect(tmp_path, objects, SHAPED))
    assert (evidence["verdict"], evidence["reasons"]) == ("degraded", ["network: no pair of network-1 was measured"])


def test_checks_are_listed_and_are_no_trials_of_the_plan(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(SHAPED)
    syn.put_network(objects, SHAPED, syn.measure(SHAPED))
    keys = [f"trials/check-network-1/{attempt}/party-0/stdout" for attempt in (1, 2)]
    run = collect(tmp_path, {**objects, **dict.fromkeys(keys, b"{}")}, SHAPED)
    assert (run["verdict"], len(run["trials"])) == ("valid", 4)
    listing = json.loads((tmp_path / PREFIX / "manifest.json").read_text())["objects"]
    assert [entry["key"] for entry in listing if entry["key"] in keys and not entry.get("superseded")] == keys


def test_the_members_of_a_check_are_read_by_name(tmp_path: pathlib.Path) -> None:
    objects = {f"trials/check-a/{n}/{m}/stdout": f"{m} {n}".encode() for n in (1, 3) for m in ("party-0", "party-1")}
    objects["trials/check-ab/7/party-0/stdout"] = b"another"
    held = store(syn.Bucket(PREFIX, objects), tmp_path)
    assert [held.next_attempt(name) for name in ("check-a", "check-ab", "check-b")] == [4, 8, 1]
    assert held.read_members("check-a", 3, ["party-1", "party-2"], "stdout") == {"party-1": b"party-1 3"}


def test_who_was_stopped_by_an_early_exit_is_not_at_fault(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    row("party-1", exit_code=None, signal=15, stopped=True)(objects)
    assert first(collect(tmp_path / "1", objects))["verdict"] == "invalid"
    head(early_exit="party-0")(objects)
    assert first(collect(tmp_path / "2", objects))["verdict"] == "valid"


def test_an_aborted_trial_has_no_missing_logs(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    aborted(objects)
    trial = first(collect(tmp_path, objects))
    assert (trial["missing"], trial["delivered"], trial["hosts"]) == ({}, 0, 4)


def test_a_trial_that_was_not_run_makes_the_run_invalid(tmp_path: pathlib.Path) -> None:
    objects = {key: body for key, body in syn.run_objects(PLAN).items() if IDS[3] not in key}
    run = collect(tmp_path, objects)
    assert run["verdict"] == "invalid"
    assert run["reasons"] == [f"trial {IDS[3]}: was not run, or left nothing"]
    assert run["figures"]["trials"]["not_run"] == 1


def test_a_warm_up_that_went_wrong_is_a_reservation_only(tmp_path: pathlib.Path) -> None:
    plan = syn.plan(warmups=1)
    objects = syn.run_objects(plan)
    name = plan["trials"][0]["trial_id"]
    syn.edit_row(objects, f"trials/{name}/1/trial.json", "party-0", exit_code=1)
    run = collect(tmp_path, objects, plan)
    assert run["verdict"] == "degraded"
    assert run["reasons"] == [f"warm-up {name}: party-0 exited with code 1"]
    assert run["figures"]["trials"] == {
        "planned": 4,
        "valid": 4,
        "degraded": 0,
        "invalid": 0,
        "not_run": 0,
        "warmups": 2,
    }


@settings(deadline=None)
@given(st.data())
def test_no_object_can_be_lost_or_changed_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    objects = syn.run_objects(PLAN)
    key = data.draw(st.sampled_from([key for key in sorted(objects) if key.startswith("trials/")]))
    if data.draw(st.booleans()):
        del objects[key]
    else:
        objects[key] = objects[key] + data.draw(st.binary(min_size=1, max_size=3)).replace(b" ", b"x").replace(
            b"\n", b"x"
        )
    run = collect(tmp_path_factory.mktemp("results"), objects)
    if key in objects and key.endswith("/trial.json"):
        try:
            json.loads(objects[key])
        except ValueError:
            pass
        else:
            return  # white space after JSON: what it says is what was said
    assert run["verdict"] == "invalid"


# --- attempts ---------------------------------------------------------------------------------------------------------


def of_attempt(number: int, **changes: t.Any) -> syn.Objects:
    objects = syn.trial_objects(PLAN["trials"][0], attempt=number)
    if changes:
        syn.edit(objects, f"trials/{IDS[0]}/{number}/trial.json", **changes)
    return objects


def unfinished(number: int) -> syn.Objects:
    return {key: body for key, body in of_attempt(number).items() if not key.endswith("trial.json")}


@pytest.mark.parametrize(
    ("objects", "attempt", "finished"),
    [
        ({}, 1, False),
        (of_attempt(1), 1, True),
        (of_attempt(1, verdict="degraded"), 1, True),
        (of_attempt(1, verdict="invalid"), 2, False),
        (unfinished(1), 1, False),  # open: taken up again
        (of_attempt(1, phase="ended"), 1, False),
        ({f"{FIRST}/trial.json": b"{"}, 2, False),
        (of_attempt(1, verdict="invalid") | of_attempt(2), 2, True),
        (of_attempt(1, verdict="invalid") | unfinished(2), 2, False),
        (of_attempt(9, verdict="invalid") | of_attempt(10, verdict="invalid"), 11, False),  # not as text
    ],
)
def test_where_a_run_goes_on(tmp_path: pathlib.Path, objects: syn.Objects, attempt: int, finished: bool) -> None:
    state = store(syn.Bucket(PREFIX, objects), tmp_path).attempts(PLAN)
    assert list(state) == IDS
    assert (state[IDS[0]]["attempt"], state[IDS[0]]["finished"]) == (attempt, finished)
    assert state[IDS[1]] == {"attempt": 1, "finished": False, "verdict": None}


def test_only_the_last_attempt_counts_and_the_others_stay_marked(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN) | of_attempt(2)
    syn.edit(objects, f"{FIRST}/trial.json", verdict="invalid", reasons=["party-0 exited with code 1"])
    run = collect(tmp_path, objects)
    assert (run["verdict"], first(run)["attempt"], first(run)["attempts"]) == ("valid", 2, 2)
    manifest = json.loads((tmp_path / PREFIX / "manifest.json").read_text())
    marked = {item["key"] for item in manifest["objects"] if item.get("superseded")}
    assert marked == {key for key in objects if key.startswith(f"{FIRST}/")}


def test_an_attempt_that_left_nothing_is_not_replaced_by_an_older_one(tmp_path: pathlib.Path) -> None:
    run = collect(tmp_path, syn.run_objects(PLAN), attempts={IDS[0]: 2})
    assert first(run)["reasons"][0] == "trial.json is missing"


# --- the manifest and the local tree ---------------------------------------------------------------------------------


def test_the_manifest_lists_every_object_with_its_sha256_and_the_tree_is_the_same(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    bucket = syn.Bucket(PREFIX, objects)
    store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0)
    root = tmp_path / PREFIX
    manifest = json.loads((root / "manifest.json").read_text())
    listed = {item["key"]: (item["size"], item["sha256"]) for item in manifest["objects"]}
    assert listed == {key: (len(body), syn.entry("", body)["sha256"]) for key, body in objects.items()}
    assert manifest["trials"][IDS[0]] == {"attempt": 1, "expected": 4, "delivered": 4, "missing": {}, "changed": {}}
    here = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    there = {key.removeprefix(f"{PREFIX}/"): held[0] for key, held in bucket.held.items()}
    assert here == there


def test_letters_of_the_barrier_are_no_evidence(tmp_path: pathlib.Path) -> None:
    objects = {**syn.run_objects(PLAN), mailbox.object_key("", mailbox.IN, "party-0")[1:]: b"signed requests"}
    collect(tmp_path, objects)
    assert not (tmp_path / PREFIX / "barrier").exists()
    assert "party-0/" in (tmp_path / PREFIX / "manifest.json").read_text()
    assert "barrier/" not in (tmp_path / PREFIX / "manifest.json").read_text()


def test_collecting_again_fetches_and_changes_nothing(tmp_path: pathlib.Path) -> None:
    bucket = syn.Bucket(PREFIX, syn.run_objects(PLAN))
    assert store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0).changed
    bucket.got.clear()
    again = store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0)
    assert not again.changed
    assert set(bucket.got) == {f"trials/{name}/1/trial.json" for name in IDS}  # read, while waiting


def test_a_local_file_that_was_damaged_is_fetched_again(tmp_path: pathlib.Path) -> None:
    bucket = syn.Bucket(PREFIX, syn.run_objects(PLAN))
    store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0)
    log = tmp_path / PREFIX / FIRST / "party-0" / "stdout"
    whole = log.read_bytes()
    log.write_bytes(whole[::-1])
    assert store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0).run["verdict"] == "valid"
    assert log.read_bytes() == whole


def test_a_download_that_fails_leaves_no_half_file(tmp_path: pathlib.Path) -> None:
    bucket = syn.Bucket(PREFIX, syn.run_objects(PLAN))
    key = f"{FIRST}/party-0/stdout"

    class Torn:
        def read(self, _size: int = -1) -> bytes:
            raise OSError(28, "No space left on device")

    whole = bucket.get_object
    bucket.get_object = lambda *, Bucket, Key: {"Body": Torn()} if Key.endswith(key) else whole(Bucket=Bucket, Key=Key)  # type: ignore[method-assign]
    with pytest.raises(EvidenceError, match=rf"s3://bucket/{PREFIX}/{key} cannot be stored at .*: No space left"):
        store(bucket, tmp_path).collect(PLAN, syn.RUN_ID, wait=0)
    assert [path.name for path in (tmp_path / PREFIX / FIRST / "party-0").iterdir() if path.name.startswith(".")] == []
    assert not (tmp_path / PREFIX / key).exists()


@pytest.mark.parametrize(
    "key", ["../evil", "trials/../../evil", "trials//evil", "/etc/evil", "trials/x/./evil", "a\0b"]
)
def test_a_key_that_leaves_the_results_is_refused(tmp_path: pathlib.Path, key: str) -> None:
    with pytest.raises(EvidenceError, match="whose name is no path"):
        collect(tmp_path, {**syn.run_objects(PLAN), key: b"x"})
    assert not (tmp_path / "evil").exists()


def test_a_name_that_a_host_chose_cannot_act_on_a_terminal(tmp_path: pathlib.Path) -> None:
    objects = syn.run_objects(PLAN)
    files = json.loads(objects[f"{FIRST}/party-0/meta.json"])["files"]
    nasty = [*files, syn.entry("\x1b[2Jx.log", b"")]
    meta("party-0", files=nasty)(objects)
    row("party-0", files=nasty)(objects)
    assert first(collect(tmp_path, objects))["reasons"] == [r"party-0: '\x1b[2Jx.log' missing"]


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_waiting_ends_as_soon_as_everything_is_there(tmp_path: pathlib.Path) -> None:
    objects, clock = syn.run_objects(PLAN), Clock()
    late = {key: objects.pop(key) for key in list(objects) if IDS[2] in key}
    bucket = syn.Bucket(PREFIX, objects)

    def arrive(count: int) -> None:
        if count == 4:
            bucket.held.update({f"{PREFIX}/{key}": (body, syn.T0) for key, body in late.items()})

    bucket.on_list = arrive
    found = store(bucket, tmp_path, clock).collect(PLAN, syn.RUN_ID, wait=300)
    assert (found.run["verdict"], found.late) == ("valid", ())
    assert len(clock.slept) == 3
    assert clock.slept == sorted(clock.slept)


def test_waiting_ends_at_the_deadline_and_names_what_did_not_come(tmp_path: pathlib.Path) -> None:
    objects, clock = syn.run_objects(PLAN), Clock()
    for key in [key for key in objects if IDS[2] in key]:
        del objects[key]
    del objects[f"{FIRST}/party-1/meta.json"]
    found = store(syn.Bucket(PREFIX, objects), tmp_path, clock).collect(PLAN, syn.RUN_ID, wait=60)
    assert found.late == (f"{FIRST}/party-1/meta.json", f"trials/{IDS[2]}/1/trial.json")
    assert clock.now == pytest.approx(60)
    assert max(clock.slept) <= 5
    assert found.run["verdict"] == "invalid"


def test_trials_that_were_not_submitted_are_not_waited_for(tmp_path: pathlib.Path) -> None:
    objects, clock = syn.run_objects(PLAN), Clock()
    for key in [key for key in objects if IDS[2] in key]:
        del objects[key]
    submitted = [name for name in IDS if name != IDS[2]]
    found = store(syn.Bucket(PREFIX, objects), tmp_path, clock).collect(PLAN, syn.RUN_ID, wait=60, trials=submitted)
    assert (clock.slept, found.late) == ([], ())
    assert found.run["reasons"] == [f"trial {IDS[2]}: was not run, or left nothing"]


def test_who_was_given_up_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    objects, clock = syn.run_objects(PLAN), Clock()
    del objects[f"{FIRST}/party-1/meta.json"]
    row("party-1", state="exited")(objects)
    store(syn.Bucket(PREFIX, objects), tmp_path, clock).collect(PLAN, syn.RUN_ID, wait=60)
    assert clock.slept == []


# --- against an S3 that is not ours -----------------------------------------------------------------------------------


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[t.Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unit")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unit-secret")
    with moto.mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield client


def test_with_boto3(s3: t.Any, tmp_path: pathlib.Path) -> None:
    for key, body in syn.run_objects(PLAN).items():
        s3.put_object(Bucket="bucket", Key=f"{PREFIX}/{key}", Body=body)
    s3.put_object(Bucket="bucket", Key=f"{PREFIX}-other/plan.json", Body=b"not ours")
    local = Store(s3, "bucket", PREFIX, tmp_path / PREFIX)
    assert all(state["finished"] for state in local.attempts(PLAN).values())
    found = local.collect(PLAN, syn.RUN_ID, wait=0)
    assert found.run["verdict"] == "valid"
    assert found.run["first_submitted"] == syn.T0
    stored = json.load(s3.get_object(Bucket="bucket", Key=f"{PREFIX}/run.json")["Body"])
    assert stored == found.run == json.loads((tmp_path / PREFIX / "run.json").read_text())
    assert not local.collect(PLAN, syn.RUN_ID, wait=0).changed

    page = tmp_path / "page.html"
    page.write_text("<p>report</p>")
    assert local.publish("report.html", page)
    assert not local.publish("report.html", page)
    assert s3.get_object(Bucket="bucket", Key=f"{PREFIX}/report.html")["ContentType"] == "text/html; charset=utf-8"
    with pytest.raises(EvidenceError, match="cannot read"):
        local.publish("report.html", tmp_path / "none.html")
    with pytest.raises(EvidenceError, match="no name for an object"):
        local.publish("../report.html", page)


@given(st.text(max_size=30))
def test_a_safe_key_stays_inside(key: str) -> None:
    root = pathlib.Path("/results/run")
    if _evidence.is_safe_key(key):
        assert root in (root / key).parents
        assert ".." not in (root / key).parts
