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
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "support"))
import toy_base  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("alluvium")
parser.add_argument("--versions", type=int, default=200)
parser.add_argument("--json")
args = parser.parse_args()
HOME = tempfile.mkdtemp(prefix="alluvium-slow-")


def path(*parts):
    return os.path.join(HOME, *parts)


def run(*words):
    r = subprocess.run([args.alluvium, *words], capture_output=True, text=True)
    if r.returncode:
        raise SystemExit(f"alluvium {' '.join(words)}: exit {r.returncode}: {r.stderr}")
    return r.stdout


def start(name, *words):
    with open(path(name + ".log"), "ab") as log:
        return subprocess.Popen([args.alluvium, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL)


def wait(condition, what):
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited a minute for {what}")
        time.sleep(0.005)


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(w.split()[1]) for w in f if w.startswith("VmRSS:")) / 1024


def publish(n):
    for _ in range(n):
        run("rollback", "0", "-C", path("line"))


def main():
    with socket.socket() as s:  # a block of ports that looks free
        port = random.randrange(20000, 30000, 8)
        s.bind(("127.0.0.1", port))
    base, text = toy_base.write(path("base")), path("text.jsonl")
    settings = {"seq_tokens": 64, "step_tokens": 128, "lease_steps_min": 1, "round_wait_ms": 100, "rank": 4, "alpha": 8}
    run("init", "-C", path("line"), "--base", base, "--line", "slow", "--port", str(port),
        *[w for k, v in settings.items() for w in ("--set", f"{k}={v}")])
    for role, name in (("subscriber", "server"), ("worker", "pool")):
        run("keys", "add", role, name, "-C", path("line"), "--out", path(name + ".join"), "--port", str(port))
    coordinator = start("coordinator", "coordinator", "-C", path("line"), "--port", str(port), "--http-port", "0")
    with open(text, "w") as f:
        for i in range(40):
            f.write(json.dumps({"id": f"r{i}", "text": f"line {i} of a text that says {i} and {i * 7}. " * 3}) + "\n")
    run("domains", "set", "notes", "-C", path("line"))
    run("push", "notes", text, "-C", path("line"), "--quiet")
    worker = start("worker", "worker", "--join", path("pool.join"), "--base", base, "--dir", path("worker"), "--threads", "1")
    wait(lambda: json.loads(run("status", "-C", path("line"), "--json"))["version"], "version 1")
    worker.kill()
    worker.wait()
    publish(3)
    before = resident_mib(coordinator.pid)
    publish(args.versions)
    alone = resident_mib(coordinator.pid) - before

    subscriber = start("subscriber", "subscribe", "--join", path("server.join"), "--dir", path("adapters"))
    current = lambda: os.path.basename(os.path.realpath(path("adapters", "current")))  # noqa: E731
    wait(lambda: current() == f"slow-v{args.versions + 4}", "the subscriber")
    subscriber.send_signal(signal.SIGSTOP)
    before, began = resident_mib(coordinator.pid), time.monotonic()
    publish(args.versions)
    grown, asleep_s, newest = resident_mib(coordinator.pid) - before, time.monotonic() - began, f"slow-v{2 * args.versions + 4}"
    woken = time.monotonic()
    subscriber.send_signal(signal.SIGCONT)
    wait(lambda: current() == newest, newest)
    result = {"versions": args.versions, "asleep_s": round(asleep_s, 1), "newest_after_s": round(time.monotonic() - woken, 3),
              "grown_mib": round(grown, 2), "grown_alone_mib": round(alone, 2)}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f)
    for p in (subscriber, coordinator):
        p.send_signal(signal.SIGTERM)
        p.wait(60)


try:
    main()
finally:
    subprocess.run(["pkill", "-KILL", "-f", HOME], check=False)
    shutil.rmtree(HOME, ignore_errors=True)
