#!/usr/bin/env python3
"""kill -9 at random moments while a line learns: is every record in exactly one version, once?

usage: kills.py ALLUVIUM [--kills N] [--seed N] [--json FILE]        scripts/build release alluvium first

A real coordinator, three workers on a toy base, and a producer that pushes more text all the time, which is pushed again when
it was cut off. After a random pause the coordinator (one time in four), a worker or the producer is killed, and started again
at once or only after a later kill. The seed fixes victims and pauses, not how the processes run. In the end the books are
compared: what was pushed, what the log holds, and what each version says it was trained on.
"""
import argparse
import glob
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

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import toy_base  # noqa: E402

parser = argparse.ArgumentParser()
parser.add_argument("alluvium")
parser.add_argument("--kills", type=int, default=200)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--json")
args = parser.parse_args()

HOME = tempfile.mkdtemp(prefix="alluvium-kills-")
WORKERS, RECORDS, PAUSE_S, RETURN_S = 3, 16, 1.2, 240
SETTINGS = {"segment_bytes": 256, "seq_tokens": 64, "step_tokens": 128, "lease_steps_min": 2, "lease_steps_max": 8, "round_wait_ms": 200,
            "lease_silence_ms": 3000, "lease_attempts": 100, "warmup_steps": 1, "lr": 1e-4, "look_1": 8, "look_2": 8, "look_3": 8,
            "probe_gate": 16, "probe_tuning": 0, "probe_audit": 0, "heldout_permille": 50, "window_tokens": 16, "forget_budget": 1,
            "double_score": 0, "rank": 4, "alpha": 8}
rng = random.Random(args.seed)
trouble = []


def path(*parts):
    return os.path.join(HOME, *parts)


def ask(*words, tries=1):
    for _ in range(tries):
        r = subprocess.run([args.alluvium, *words, "-C", path("line"), "--json", "--timeout", "20"], capture_output=True, text=True)
        if r.returncode == 0:
            return json.loads(r.stdout)
    raise RuntimeError(f"alluvium {' '.join(words)}: {r.stderr}")


def must(*words):
    r = subprocess.run([args.alluvium, *words], capture_output=True, text=True, timeout=60)
    if r.returncode:
        raise SystemExit(f"alluvium {' '.join(words)}: exit {r.returncode}: {r.stderr}")


class Process:
    def __init__(self, name, *words):
        self.name, self.words, self.p = name, words, None

    def start(self):
        with open(path(self.name + ".log"), "ab") as log:
            self.p = subprocess.Popen([args.alluvium, *self.words], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self):
        if self.p.poll() is not None:
            trouble.append(f"{self.name} had ended by itself with {self.p.returncode}")
        self.p.kill()
        self.p.wait()
        self.p = None


def free_ports():
    while True:
        base = random.randrange(20000, 60000, 8)
        try:
            for port in range(base, base + 5):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue


class Producer:
    """Pushes file after file, each until it was told that all of it is stored."""

    def __init__(self):
        self.p, self.files, self.at, self.cut = None, [], 0, 0

    def add(self):
        n = len(self.files)
        self.files.append(path(f"source-{n}.jsonl"))
        with open(self.files[-1], "w") as f:
            for i in range(RECORDS):
                text = f"record {n}.{i}: " + "".join(rng.choice("abcdefghij klmnopqrst") for _ in range(rng.randrange(40, 200)))
                f.write(json.dumps({"id": f"r{n}.{i}", "text": text}) + "\n")

    def go_on(self):
        if self.p and self.p.poll() is not None:
            if self.p.returncode == 0:
                self.at += 1
            elif self.p.returncode != -signal.SIGKILL and self.p.returncode != 75:  # 75: no coordinator in time
                trouble.append(f"push ended with {self.p.returncode}")
            self.p = None
        if not self.p and self.at < len(self.files):
            with open(path("producer.log"), "ab") as log:
                self.p = subprocess.Popen([args.alluvium, "push", "notes", self.files[self.at], "--join", path("feeds.join"), "--quiet"],
                                          stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self.at == len(self.files)

    def kill(self):
        if self.p and self.p.poll() is None:
            self.p.kill()
            self.cut += 1


def settled():
    status = ask("status")
    return all(d["states"]["pending"] + d["states"]["leased"] + d["states"]["accepted"] == 0 for d in status["domains"])


def until(what, condition):
    end = time.monotonic() + RETURN_S
    while time.monotonic() < end:
        try:
            if condition():
                return
        except RuntimeError:
            pass
        time.sleep(0.1)
    for log in sorted(glob.glob(path("*.log"))):
        print(f"--- {os.path.basename(log)}\n" + "".join(open(log, errors="replace").readlines()[-12:]), file=sys.stderr)
    raise SystemExit(f"FAILED: waited {RETURN_S} s for {what}")


def books(pushed):
    """(records, lost, counted twice, versions): what was pushed against the log, and the log against the versions' own lists."""
    status = ask("status", tries=5)
    notes = next((i, d) for i, d in enumerate(status["domains"]) if d["domain"] == "notes")
    index, d = notes
    lost = twice = 0
    if d["segments"] + d["probe_segments"] != pushed:  # each record is one segment
        lost += max(0, pushed - d["segments"] - d["probe_segments"])
        twice += max(0, d["segments"] + d["probe_segments"] - pushed)
    seen = [0] * d["segments"]
    for version in range(1, status["version"] + 1):
        for r in ask("trace", str(version), tries=5)["direct"]:
            if r["domain"] == index:
                for o in range(r["first"], r["first"] + r["count"]):
                    seen[o] += 1
    lost += sum(n == 0 for n in seen)
    twice += sum(max(0, n - 1) for n in seen)
    if d["states"]["done"] != d["segments"] or status["quarantined"] or d["refused"] or d["duplicates"]:
        trouble.append(f"the log's own states: {d}, {status['quarantined']} held")
    return lost, twice, status["version"]


def main():
    began, port = time.monotonic(), free_ports()
    base = toy_base.write(path("base"))
    with open(path("anchor.jsonl"), "w") as f:
        for i in range(40):
            f.write(json.dumps({"id": f"a{i}", "text": f"anchor {i} of a text that says {i} and {i * 7}. " * 3}) + "\n")
    must("init", "-C", path("line"), "--base", base, "--anchor", path("anchor.jsonl"), "--line", "kills", "--port", str(port),
         *[w for k, v in SETTINGS.items() for w in ("--set", f"{k}={v}")])
    for role, name in (("worker", "pool"), ("producer", "feeds")):
        must("keys", "add", role, name, "-C", path("line"), "--out", path(name + ".join"), "--port", str(port))
    coordinator = Process("coordinator", "coordinator", "-C", path("line"), "--port", str(port), "--http-port", "0")
    workers = [Process(f"worker-{i}", "worker", "--join", path("pool.join"), "--base", base, "--dir", path(f"worker-{i}"),
                       "--threads", "1", "--micro-rows", "64") for i in range(WORKERS)]
    everybody, away, killed = [coordinator, *workers], [], {}
    for p in everybody:
        p.start()
    until("the coordinator", lambda: ask("status"))
    must("domains", "set", "notes", "-C", path("line"))
    producer = Producer()
    for _ in range(args.kills):
        producer.add()
        end = time.monotonic() + rng.uniform(0, PAUSE_S)
        while time.monotonic() < end:
            producer.go_on()
            time.sleep(0.02)
        victim = rng.choice([coordinator, producer, *[w for w in workers if w.p], *[w for w in workers if w.p]] if rng.random() < 0.75
                            else [coordinator])
        back = rng.random()
        victim.kill()
        name = "producer" if victim is producer else victim.name.split("-")[0]
        killed[name] = killed.get(name, 0) + 1
        if victim in workers and back < 0.3:
            away.append(victim)
        elif victim is not producer:
            victim.start()
        if away and (len(away) == WORKERS or rng.random() < 0.5):
            away.pop(0).start()
    for p in away:
        p.start()
    until("the producer", lambda: producer.go_on())
    until("all text to be learnt", settled)
    lost, twice, versions = books(RECORDS * args.kills)
    for p in (*workers, coordinator):
        if p.p.poll() is not None:
            trouble.append(f"{p.name} had ended by itself with {p.p.returncode}")
        p.p.send_signal(signal.SIGTERM)
        if p.p.wait(60):
            trouble.append(f"{p.name} ended with {p.p.returncode} after TERM")
        p.p = None
    result = {"seed": args.seed, "kills": args.kills, "killed": killed, "pushes_cut": producer.cut, "records": RECORDS * args.kills,
              "versions": versions, "lost": lost, "counted_twice": twice, "seconds": round(time.monotonic() - began)}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f)
    for t in trouble:
        print(f"FAILED: {t}")
    return 1 if lost or twice or trouble or not versions else 0


try:
    code = main()
finally:
    subprocess.run(["pkill", "-KILL", "-f", HOME], check=False)
    if not os.environ.get("ALLUVIUM_KEEP"):
        shutil.rmtree(HOME, ignore_errors=True)
sys.exit(code)
