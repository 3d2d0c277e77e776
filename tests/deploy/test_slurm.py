#!/usr/bin/env python3
"""Four workers of a Slurm array, by the how-to alone:  test_slurm.py ALLUVIUM TOY_BASE SOURCE_DIR

Starts a one-node Slurm, runs the commands of docs/how-to/deploy-on-slurm.md as they stand (but for the names in its first block, and
without building), requeues one task while it has a lease and cancels another, and counts: every segment is in exactly one
version, every task is the worker it was.
"""
import os
import re
import shlex
import subprocess
import sys

from rig import SETTINGS, Line, end, expect, wait

ALLUVIUM, TOY, SOURCE = sys.argv[1:4]
# Leases of a second or two, long enough to be interrupted.
SLOW = {**SETTINGS, "lease_steps_min": 300, "lease_steps_max": 1200, "lease_silence_ms": 20000, "round_wait_ms": 3000}
line = Line(ALLUVIUM, TOY)
shared = line.path("shared")
os.makedirs(shared)
line.dir = line.path("shared", "line")


def blocks():
    """The page's code: (heading, commands) of each indented block."""
    with open(os.path.join(SOURCE, "docs/how-to/deploy-on-slurm.md"), encoding="utf-8") as f:
        text = f.read()
    heading, out = "", []
    for part in re.split(r"\n\n", text):
        heading = part[3:].strip() if part.startswith("## ") else heading
        if part.startswith("    "):
            out.append((heading, "\n".join(row[4:] for row in part.splitlines())))
    return out


def follow_the_page(environment):
    names = {"shared": shared, "line": line.dir, "address": "127.0.0.1", "base": line.base, "anchor": line.text("general.jsonl", 60),
             "text": line.text("notes.jsonl", 6000)}
    commands, seen = ["set -eu"], []
    for heading, code in blocks():
        seen.append(heading)
        if heading == "Names":
            expect(sorted(re.findall(r"^(\w+)=", code, re.M)) == sorted(names), f"the page's names: {code}")
            commands += [f"{name}={shlex.quote(value)}" for name, value in names.items()]
        elif heading != "Build":
            commands.append(code)
    expect(len(set(seen)) == 5, f"five headings with commands: {seen}")
    commands.append(f"echo $! >{line.path('coordinator.pid')}")
    with open(line.path("page.log"), "w+", encoding="utf-8") as log:  # a file: the coordinator keeps it open
        code = subprocess.run(["bash", "-c", "\n".join(commands)], cwd=SOURCE, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                              timeout=180).returncode
        log.seek(0)
        if code:
            raise SystemExit(f"FAILED: the page's commands: exit {code}\n{log.read()}")


def slurm(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def tasks(*more):
    """{task: state} of the array."""
    return dict(row.split() for row in slurm("squeue", "-h", "-r", "-o", "%K %T", *more).splitlines())


def log_of(task):
    with open(os.path.join(shared, f"worker-{task}.log"), encoding="utf-8", errors="replace") as f:
        return f.read()


def file_of(task, name):
    with open(os.path.join(shared, "workers", str(task), name), encoding="utf-8") as f:
        return f.read().strip()


def training(task):
    """Is the task's worker in the middle of a lease?"""
    return 'msg="train task=' in log_of(task).rstrip().rsplit("\n", 1)[-1]


def everything_once():
    domains = {d["domain"]: d for d in line.ask("status")["domains"]}
    notes = domains["notes"]
    expect(notes["states"]["done"] == notes["segments"] > 1000, f"every segment to be done: {notes['states']} of {notes['segments']}")
    ranges = []
    for v in line.ask("versions", "list")["versions"]:
        if v["version"]:
            ranges += [(r["first"], r["count"]) for r in line.ask("trace", str(v["version"]))["direct"] if r["domain"] != 0]
    at = 0
    for first, count in sorted(ranges):
        expect(first == at, f"versions to share out all segments once: {first} follows {at}")
        at = first + count
    expect(at == notes["segments"], f"the last segment to be in a version: {at} of {notes['segments']}")


def main():
    environment = {**os.environ, "PATH": os.path.dirname(ALLUVIUM) + ":" + os.environ["PATH"], "SLURM_CONF": line.path("slurm", "slurm.conf"),
                   "ALLUVIUM_PORT": str(line.port), "ALLUVIUM_HTTP_PORT": "0", "ALLUVIUM_SETTINGS": line.path("settings"), "ALLUVIUM_MICRO_ROWS": "64"}
    os.environ["SLURM_CONF"] = environment["SLURM_CONF"]
    with open(line.path("settings"), "w", encoding="ascii") as f:
        f.writelines(f"{k} = {v}\n" for k, v in SLOW.items())
    follow_the_page(environment)
    wait("four tasks to run", lambda: list(tasks().values()) == ["RUNNING"] * 4)
    wait("four workers", lambda: line.ask("status")["workers"] == 4)
    who = {task: file_of(task, "instance") for task in (1, 2, 3, 4)}
    expect(len(set(who.values())) == 4, f"four different workers: {who}")

    wait("all four to train", lambda: all("train task=" in log_of(task) for task in who))
    wait("task 2 in the middle of a lease", lambda: training(2))
    array = slurm("squeue", "-h", "-o", "%F").split()[0]
    slurm("scontrol", "requeue", f"{array}_2")
    wait("task 2 to be told, and to end", lambda: "asked to stop" in log_of(2))
    wait("task 2 again", lambda: "restarts 1" in log_of(2) and tasks().get("2") == "RUNNING", 180)
    wait("task 2's second start", lambda: file_of(2, "boot") == "2")
    expect(file_of(2, "instance") == who[2], "a requeued task to stay the same worker")
    # What the trainer says of its stop may come too late for the log: the order of these three lines is the proof.
    log = re.sub(r"(?m)^(?!ts=).*\n", "", log_of(2))
    expect(re.search(r"train task=(\d+) .*\n.*asked to stop.*\n.*return task=\1 ", log),
           f"a requeued task to hand its lease back, in the middle of it: {log}")
    slurm("scancel", f"{array}_4")
    wait("task 4 to be gone", lambda: "4" not in tasks())
    expect("asked to stop" in log_of(4), "a cancelled task to be told before it is killed")

    wait("all of it learnt", lambda: all(d["states"]["pending"] + d["states"]["leased"] + d["states"]["accepted"] == 0
                                         for d in line.ask("status")["domains"]), 240)
    everything_once()


one_node = os.path.join(SOURCE, "deploy/slurm/one-node")
try:
    subprocess.run([one_node, "up", line.path("slurm"), "4"], check=True, stdout=subprocess.DEVNULL)
    try:
        main()
    except SystemExit:
        for task in (1, 2, 3, 4):
            print(f"--- task {task}\n" + "\n".join(log_of(task).splitlines()[-6:]))
        print(line.ask("status")["round"])
        raise
    finally:
        slurm("scancel", "-u", str(os.getuid()))
        wait("the array to be gone", lambda: not tasks())
finally:
    subprocess.run([one_node, "down", line.path("slurm")], check=False)
    if os.path.exists(line.path("coordinator.pid")):
        with open(line.path("coordinator.pid"), encoding="ascii") as f:
            os.kill(int(f.read()), 15)
    line.close()
end()
