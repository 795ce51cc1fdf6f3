#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Documentation of the action plugin startline.lab.start_barrier."""

from __future__ import annotations

DOCUMENTATION = r"""
module: start_barrier
short_description: Start a command on many hosts at the same instant, and see it to its end
version_added: 0.1.0
author: The Startline authors (@startline)
description:
  - Runs one trial. Gives it to the rendezvous, and waits until its commands have ended or its evidence is delivered.
  - Every member prepares a clean working directory, loads the shell of the command, which waits, measures its clock,
    and says that it is armed. When all are armed, the rendezvous chooses an instant T and publishes it. Nobody is told to start
    at T; every launcher sleeps to T on its own clock. How far apart the commands really started is measured and returned.
  - When not all members (or as many as O(seats) asks for) are armed by O(deadline), nobody starts, and the task fails with the
    names of the missing members and the last state that each was seen in. No wait is without an end.
  - Runs against the coordinator host, the one whose agent was installed with O(startline.lab.agent#module:rendezvous=true). The
    other hosts are not contacted by Ansible, so the time this takes does not grow with their number.
  - Saying the same trial again, also from another controller, or after this one was killed, attaches to it or gives its result.
    It is never run twice under one O(attempt).
notes:
  - Every member and the coordinator were set up by M(startline.lab.agent) for the same O(run_id).
  - A broken connection to the coordinator is made again until the trial's time is over; the trial goes on meanwhile. The host
    is not marked unreachable.
  - A command may wait for those on other hosts, wherever it stands, by C(startline-agent wait NAME), in any language and as any
    user. All go on at the same instant. When somebody does not come in time, or has ended, it exits with 1 and names who.
  - O(deadline), O(timeout) and O(delivery_deadline) bound the task; it needs no C(timeout) of its own.
attributes:
  check_mode:
    description: Checks the arguments and does nothing.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
  idempotent:
    description: A trial that has run under this O(attempt) is not run again; its result is returned.
    support: full
options:
  run_id:
    description: The run.
    type: str
    required: true
  trial_id:
    description: Name of the trial, unique in the run.
    type: str
    required: true
  attempt:
    description: Number of the attempt. A trial that has failed is repeated under the next number; a lower one is refused.
    type: int
    default: 1
  members:
    description: Who takes part, by name.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the member, as its agent was given it.
        type: str
        required: true
      rank:
        description: The member's place among all, from 0.
        type: int
        required: true
      command:
        description: What C(/bin/sh -c) runs in the working directory.
        type: str
        required: true
      environment:
        description:
          - Variables of the command, beside C(PATH), C(HOME), C(USER), C(LANG) and C(STARTLINE_RUN), C(STARTLINE_TRIAL),
            C(STARTLINE_ATTEMPT), C(STARTLINE_MEMBER), C(STARTLINE_RANK), C(STARTLINE_SOCKET).
        type: dict
        default: {}
      links:
        description: Links of this member alone, beside O(links).
        type: dict
        default: {}
      network:
        description: Name of one of O(networks), which this member has in force. Without it, its network is left as it is.
        type: str
      addresses:
        description: The member's own addresses. Rules of its network do not apply to them.
        type: list
        elements: str
        default: []
      site:
        description: The entry of O(site_files) that it gets.
        type: str
  networks:
    description:
      - What members do with what they send, by names that O(members[].network) uses. Each has C(phases), a list of C(at) and
        C(rules), and C(exempt); rules and exemptions are those of M(startline.lab.netem).
      - The first phase is in force before the member is armed; the others from C(at) seconds after T on. A member whose rules
        cannot be had is not armed. When its command has ended, or the trial is called off, they are removed, and before that it
        is seen whether anybody has changed them. If the agent dies and does not come back, they remove themselves.
    type: dict
    default: {}
  files:
    description: Text files that are written in every working directory, by relative path.
    type: dict
    default: {}
  site_files:
    description:
      - Files that differ from site to site, such as a hosts.config. By site, then as O(files), beside which they are written, or
        in place of one of the same path.
    type: dict
  links:
    description: Symbolic links that are made in every working directory, by relative path. One that leads nowhere is an error.
    type: dict
    default: {}
  deadline:
    description: Seconds within which every member is armed.
    type: float
    default: 60
  timeout:
    description: Seconds within which every command ends. One that does not is ended with everything that it has started.
    type: float
    default: 3600
  delivery_deadline:
    description: Seconds after the last command's end within which the evidence is delivered.
    type: float
    default: 600
  seats:
    description:
      - Who may start, where not all members have to. Each entry has candidates for some places; every member is in one of them.
        Without it, everyone starts or nobody.
      - When all who are wanted first are armed, they start at once. When one of them cannot come any more, the next takes its
        place. One that is late is waited for until O(grace) is over, or O(deadline).
      - Who is not among those who start is let go, and never starts under this O(attempt), however it comes back. Files and
        commands are used as they were given; M(startline.lab.trial) makes them anew for those who start.
    type: list
    elements: dict
    suboptions:
      members:
        description: The candidates, in the order in which they are wanted. Spares come last.
        type: list
        elements: str
        required: true
      seats:
        description: How many of them start.
        type: int
        required: true
      least:
        description: How few of them may start. Fewer than O(seats[].seats) make the trial V(degraded).
        type: int
        required: true
  grace:
    description: Seconds that a late member is waited for once O(seats) could be filled without it.
    type: float
    default: 10
  on_early_exit:
    description:
      - What follows when a command ends before the others. V(continue) lets them run; V(stop_on_failure) stops them if it has
        failed; V(stop) stops them in any case. Who is stopped so is not at fault.
      - Stopped is a command with everything that it has started, by SIGTERM, and by SIGKILL 5 s later.
    type: str
    choices: [continue, stop_on_failure, stop]
    default: continue
  max_clock_error:
    description: Seconds by which a member's clock may be wrong.
    type: float
    default: 0.05
  on_clock_error:
    description:
      - What becomes of a member whose clock may be wrong by more, or was stepped or has drifted by more in the trial. V(mark)
        notes it, and the verdict is V(degraded). V(refuse) does not start it, nor anybody where no other may take its seat; known
        only after the start, the verdict is V(invalid).
    type: str
    choices: [mark, refuse]
    default: mark
  collect:
    description:
      - Files of the working directory that are evidence beside stdout and stderr, as globs. C(**) stands for any directories.
        Links are not followed.
    type: list
    elements: str
    default: []
  user:
    description: Who the command runs as. Without it, as the agent, which is root.
    type: str
  evidence:
    description: Where the evidence goes. Without it, the files stay on the hosts.
    type: dict
    suboptions:
      bucket:
        description: S3 bucket.
        type: str
        required: true
      prefix:
        description: Prefix of the run in it.
        type: str
        required: true
      region:
        description: Region of the bucket.
        type: str
      endpoint_url:
        description: Endpoint that answers in place of AWS.
        type: str
  wait:
    description:
      - Returns when all commands have ended (V(exited)), so that the next trial can start while evidence is on its way, or when
        the evidence is delivered as well (V(delivered)).
      - A result that came by V(exited) does not know yet whether all evidence will arrive.
    type: str
    choices: [exited, delivered]
    default: delivered
seealso:
  - module: startline.lab.trial
  - module: startline.lab.agent
"""

EXAMPLES = r"""
- name: Start a command on two hosts at the same instant
  hosts: party-0
  gather_facts: false
  become: true
  tasks:
    - name: Say what time it is
      startline.lab.start_barrier:
        run_id: "{{ run_id }}"
        trial_id: clock.r1
        members:
          - {name: party-0, rank: 0, command: date +%s.%N}
          - {name: party-1, rank: 1, command: date +%s.%N}
        deadline: 30
        timeout: 10
      register: trial

    - name: Show how far apart they started
      ansible.builtin.debug:
        msg: "{{ trial.skew.max_us - trial.skew.min_us }} us; clocks known to {{ trial.skew.bound_us }} us"

- name: Start two of three hosts, whichever are ready, and stop both when one has failed
  hosts: party-0
  gather_facts: false
  become: true
  tasks:
    - name: Wait for each other a second time, when everything is loaded
      startline.lab.start_barrier:
        run_id: "{{ run_id }}"
        trial_id: spare.r1
        members:
          - {name: party-0, rank: 0, command: &command cat input && startline-agent wait loaded && echo go > out.log}
          - {name: party-1, rank: 1, command: *command}
          - {name: party-2, rank: 2, command: *command, environment: {ROLE: spare}}
        files: {input: "what every member reads"}
        seats:
          - {members: [party-0, party-1, party-2], seats: 2, least: 2}
        grace: 2
        on_early_exit: stop_on_failure
        collect: ["*.log"]
        timeout: 60
"""

RETURN = r"""
msg:
  description: One line on what happened. Of a failure, who and why.
  returned: always
  type: str
  sample: "clock.r1: valid; 2 of 2 started within 0.2 ms (p50 0.1 ms, clocks known to 0.3 ms), the last was party-1"
format:
  description: Version of what follows, which is the content of trial.json.
  returned: when the rendezvous has answered
  type: str
  sample: startline-trial/1
epoch:
  description: Run, trial and attempt.
  returned: when the rendezvous has answered
  type: dict
  sample: {run: dkg-20260101T120000Z-1a2b, trial: clock.r1, attempt: 1}
phase:
  description: V(ended) when evidence may still be on its way, V(settled) when this result is final.
  returned: when the rendezvous has answered
  type: str
outcome:
  description:
    - V(completed) when T was published, V(aborted) when nobody started. V(reform) when nobody started because others would have
      than those that were meant; M(startline.lab.trial) makes another attempt of it.
  returned: when the rendezvous has answered
  type: str
verdict:
  description: V(valid), V(degraded) or V(invalid).
  returned: when the rendezvous has answered
  type: str
reasons:
  description: Every reason why the verdict is not better.
  returned: when the rendezvous has answered
  type: list
  elements: str
submitted:
  description: When the trial had its turn. Times without a unit in their name are UNIX seconds, on the rendezvous' clock.
  returned: when the rendezvous has answered
  type: float
armed:
  description: When the last member was armed.
  returned: when the rendezvous has answered
  type: float
published:
  description: When T was published.
  returned: when the rendezvous has answered
  type: float
start:
  description: T.
  returned: when the rendezvous has answered
  type: float
start_ns:
  description: T in nanoseconds.
  returned: when the rendezvous has answered
  type: int
ended:
  description: When all commands had ended.
  returned: when the rendezvous has answered
  type: float
lead_s:
  description: From the publication to T.
  returned: when the rendezvous has answered
  type: float
roster:
  description: Who started, in the order of ranks.
  returned: when it was decided
  type: list
  elements: str
replaced:
  description: Members that were meant to start and whose place another took, with the last state each was in (C(was)).
  returned: when the rendezvous has answered
  type: list
  elements: dict
  sample: [{member: party-3, was: "prepared, connection lost"}]
dropped:
  description: Members that were meant to start and whose place stayed empty.
  returned: when the rendezvous has answered
  type: list
  elements: dict
formed_from:
  description: Attempts before this one that ended because others could start than those that their files were made for.
  returned: when the rendezvous has answered
  type: list
  elements: dict
  sample: [{attempt: 1, roster: [party-0, party-2], replaced: [{member: party-1, was: absent}], dropped: []}]
last_armed:
  description:
    - Who was the last to be ready, and so delayed T; how long after the one before (C(behind_s)), and when it came into each
      state.
  returned: when T was published
  type: dict
  sample:
    member: party-1
    at: 1767268800.1
    behind_s: 0.03
    states: {connected: 1767268799.9, prepared: 1767268800.0, armed: 1767268800.1}
early_exit:
  description: The member whose end has stopped the others, by O(on_early_exit).
  returned: when the rendezvous has answered
  type: str
barriers:
  description:
    - Every meeting at a named barrier (C(startline-agent wait)), in the order in which they began. Who came first and last, the
      instant at which all went on, how punctual they were; or why it failed.
  returned: when the rendezvous has answered
  type: list
  elements: dict
  sample:
    - name: loaded
      generation: 1
      arrived: 2
      first: {member: party-1, at: 1767268801.1}
      last: {member: party-0, at: 1767268801.9}
      released: 1767268802.0
      reason: null
      skew: {n: 2, min_us: 71.0, p50_us: 71.0, p99_us: 90.5, max_us: 90.5, last: party-0, bound_us: 301.5}
network:
  description:
    - What M(startline.lab.network_check) has measured of the network before, where M(startline.lab.trial) was given it. Its
      verdict marks the trial, or does not let it start.
  returned: when the rendezvous has answered
  type: dict
skew:
  description:
    - How long after T the commands were started. C(bound_us) is how well the least known clock was known; the true distance
      between two members may be larger than the one shown by twice that. C(why) tells what made the last one late, C(armed late),
      C(CPU) or C(clock), with the figure; or an ordinary wake-up.
  returned: when a command was started
  type: dict
  sample: {n: 2, min_us: 81.2, p50_us: 81.2, p99_us: 214.0, max_us: 214.0, bound_us: 301.5, last: party-1, why: ordinary wake-up}
members:
  description: Every member with the last state that it was seen in.
  returned: when the rendezvous has answered
  type: dict
  sample:
    party-0:
      rank: 0
      role: starter
      state: delivered
      connected: true
      armed_at: 1767268800.1
      fired_at: 1767268800.2
      late_us: 81.2
      bound_us: 301.5
      clock: {source: ntp, offset_s: 0.0, bound_s: 0.0003015, rtt_s: 0.0002, stepped_s: 0.0, drifted_s: 0.0, note: null}
      clock_after: {source: ntp, offset_s: 0.0, bound_s: 0.0003102, rtt_s: 0.0002, stepped_s: 0.0, drifted_s: 0.0, note: null}
      exit_code: 0
      signal: null
      timed_out: false
      stopped: false
      exited_at: 1767268801.3
      duration_s: 1.1
      leftovers: 0
      clock_step_s: 0.0
      remaining: []
      ports: []
      network: null
      reason: null
      files: [{path: stdout, size: 21, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}]
evidence:
  description: Where the evidence went, as given.
  returned: when the rendezvous has answered
  type: dict
waited_at_most_s:
  description: Seconds after which an answer was not waited for any more.
  returned: when the rendezvous could not be asked
  type: float
"""
