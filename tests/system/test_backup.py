#!/usr/bin/env python3
"""A line whose disk is lost: backed up while it is served, restored, and met again by the peers that saw what it forgot.

usage: test_backup.py ALLUVIUM

The line learns on a toy base. Waits are for events.
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import toy_line  # noqa: E402
from expectations import end, expect  # noqa: E402


def counts_once(line):
    return all(sum(d["states"].values()) == d["segments"] for d in line.ask("status")["domains"])


def answers(line):
    return subprocess.run([line.alluvium, "status", "-C", line.path("line"), "--json"], capture_output=True).returncode == 0


def killed_backup(line):
    """One that is killed at whatever point it has come to leaves the one before, or is whole itself."""
    for i in range(4):
        p = subprocess.Popen([line.alluvium, "backup", line.path("saved"), "-C", line.path("line")], stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
        line.wait("it to have begun", lambda: p.poll() is not None or glob.glob(line.path("saved.part", "tree", "*")))
        time.sleep(0.001 * i)  # another point each time; wherever it is, the same must hold
        p.kill()
        p.wait()
        line.run("restore", line.path("saved"), "-C", line.path("tried"), "--json")  # checks every file
        shutil.rmtree(line.path("tried"))


def left_behind(line):
    """What a kill leaves at each step of the making, and what somebody else put there."""
    part = line.path("saved.part")
    shutil.rmtree(part, ignore_errors=True)
    for names in ([], ["unfinished"], ["unfinished", "tree"], ["unfinished", "tree", "tree/blobs", "tree/BACKUP"]):
        os.mkdir(part)
        for name in names:
            os.mkdir(os.path.join(part, name)) if name.endswith(("tree", "blobs")) else open(os.path.join(part, name), "w").close()
        line.run("backup", line.path("saved"), "-C", line.path("line"), "--json")
        expect(not os.path.exists(part), f"{names} to be cleared away")
    os.mkdir(part)
    open(os.path.join(part, "mine"), "w").close()
    refused = subprocess.run([line.alluvium, "backup", line.path("saved"), "-C", line.path("line")], capture_output=True, text=True)
    expect(refused.returncode != 0 and "in the way" in refused.stderr, f"another's directory to be left alone: {refused.stderr}")
    expect(os.path.exists(os.path.join(part, "mine")), "nothing of it to be removed")
    shutil.rmtree(part)


def main():
    with toy_line.Line(sys.argv[1], "saved") as line:
        worker = line.worker()
        subscriber = line.start("subscriber", "subscribe", "--join", line.join("subscriber"), "--dir", line.path("adapters"))

        def in_place():
            return os.path.basename(os.path.realpath(line.path("adapters", "current")))

        line.push()
        line.wait("version 1", line.version)
        line.run("versions", "mark", "0", "tainted", "--reason", "a test", "-C", line.path("line"))
        first = json.loads(line.run("backup", line.path("saved"), "-C", line.path("line"), "--json"))
        expect(first["files"] > 12 and first["bytes"] == first["written_bytes"], f"a backup: {first}")
        killed_backup(line)
        left_behind(line)
        second = json.loads(line.run("backup", line.path("saved"), "-C", line.path("line"), "--json"))
        expect(second["written_bytes"] < second["bytes"], f"what has not changed to be linked: {second}")
        expect(not os.path.exists(line.path("saved.part")) and not os.path.exists(line.path("line", "snapshot")), "nothing to be left beside it")
        saved = line.version()

        line.push()  # the lost time: text, a version, a subscriber that has it
        line.wait("a version after the backup", lambda: line.version() > saved)
        lost = line.version()
        line.wait("the subscriber to have it", lambda: in_place() == f"saved-v{lost}")
        line.coordinator.kill()
        line.coordinator.wait()

        restored = json.loads(line.run("restore", line.path("saved"), "-C", line.path("again"), "--json"))
        expect(restored["newest"] == saved and restored["next"] >= saved + 1000, f"the numbers to jump: {restored}")
        shutil.rmtree(line.path("line"))
        os.rename(line.path("again"), line.path("line"))
        line.coordinator = line.start("coordinator", "coordinator", "-C", line.path("line"), "--http-port", "0")
        line.wait("the restored line", lambda: answers(line))
        expect(line.ask("versions", "show", "0")["tainted_reason"] == "a test", "marks to be there")
        line.wait("the subscriber to say why it stays", lambda: "points back" in json.dumps(line.ask("status")["members"]))
        expect(in_place() == f"saved-v{lost}", "a subscriber never to go back")
        line.run("push", "notes", line.path("text-2.jsonl"), "-C", line.path("line"), "--quiet")  # what was lost, again
        line.wait("a version of the restored line", lambda: line.version() >= restored["next"])
        line.wait("the subscriber to have that", lambda: in_place() == f"saved-v{line.version()}")
        expect(worker.poll() is None and subscriber.poll() is None, "the peers to have gone on by themselves")
        expect("all that is cached is dropped" in open(line.path("worker.log")).read(), "the worker to drop its cache")
        expect(counts_once(line), "every segment to be in exactly one state")

        listed = line.ask("versions", "list")["versions"]
        expect([v["version"] for v in listed] == sorted((v["version"] for v in listed), reverse=True) and listed[-1]["version"] == 0,
               f"the list to go over the gap: {[v['version'] for v in listed]}")
        trained = json.loads(line.run("retract", "notes/r2.0", "--taint", "-C", line.path("line"), "--json"))
        marked = {v["version"] for v in line.ask("versions", "list")["versions"] if v["tainted"]}
        expect(marked == {0} | set(trained["trace"]["seen_by"]) and len(marked) > 1, f"versions that saw it to be tainted: {marked}")
        for p in (subscriber, worker, line.coordinator):
            expect(line.stop(p), "a clean end after TERM")


main()
end()
