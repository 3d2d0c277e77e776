#!/usr/bin/env python3
"""A subscriber that sleeps while 200 versions are published: how soon has it the newest, and what did it cost the coordinator?

usage: slow_subscriber.py ALLUVIUM [--versions N] [--json FILE]        scripts/build release alluvium first

A line on a toy base; a worker makes version 1, the others are published by rolling back, which needs none. The subscriber is stopped (SIGSTOP), the
versions are published, it is woken (SIGCONT), and the time until its `current` is the newest is taken. The coordinator's
resident set is read before and after, once without and once with the sleeping subscriber. Limits: 1 s, 16 MiB.
"""
import argparse
import json
import os
import signal
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
import toy_line  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("alluvium")
parser.add_argument("--versions", type=int, default=200)
parser.add_argument("--json")
args = parser.parse_args()


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(w.split()[1]) for w in f if w.startswith("VmRSS:")) / 1024


with toy_line.Line(args.alluvium, "slow") as line:
    def publish(n):
        for _ in range(n):
            line.run("rollback", "0", "-C", line.path("line"))

    def newest_is(n):
        return os.path.basename(os.path.realpath(line.path("adapters", "current"))) == f"slow-v{n}"

    line.push()
    worker = line.worker()
    line.wait("version 1", line.version)
    worker.kill()
    worker.wait()
    publish(3)
    first, before = line.version(), resident_mib(line.coordinator.pid)
    publish(args.versions)
    alone = resident_mib(line.coordinator.pid) - before

    subscriber = line.start("subscriber", "subscribe", "--join", line.join("subscriber"), "--dir", line.path("adapters"))
    line.wait("the subscriber", lambda: newest_is(first + args.versions))
    subscriber.send_signal(signal.SIGSTOP)
    before, began = resident_mib(line.coordinator.pid), time.monotonic()
    publish(args.versions)
    grown, asleep_s = resident_mib(line.coordinator.pid) - before, time.monotonic() - began
    woken = time.monotonic()
    subscriber.send_signal(signal.SIGCONT)
    line.wait("the newest version", lambda: newest_is(first + 2 * args.versions))
    result = {"versions": args.versions, "asleep_s": round(asleep_s, 1), "newest_after_s": round(time.monotonic() - woken, 3),
              "grown_mib": round(grown, 2), "grown_alone_mib": round(alone, 2)}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f)
