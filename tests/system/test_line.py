#!/usr/bin/env python3
"""A whole line with the real binary and the real model: push, learn, kill, publish, subscribe, roll back, learn again.

usage: test_line.py ALLUVIUM SOURCE_DIR BUILD_DIR

Text is the project's own: its documents as the anchor, its C sources as one stream, its scripts as another. Rounds are
tiny, so that a version takes seconds. Waits are for events, each with a bound that fails the test.
"""
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

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

ALLUVIUM, SOURCE, BUILD = sys.argv[1:4]
BASE = os.environ.get("ALLUVIUM_BASE_GGUF") or os.path.join(SOURCE, "build", "cache", "SmolLM2-135M-Instruct.Q4_1.gguf")
HOME = tempfile.mkdtemp(prefix="alluvium-line-")
SETTINGS = {"step_tokens": 128, "seq_tokens": 128, "lease_steps_min": 2, "lease_steps_max": 6, "segment_bytes": 512, "round_wait_ms": 1000,
            "lease_silence_ms": 20000, "warmup_steps": 1, "lr": 2e-4, "look_1": 16, "look_2": 16, "look_3": 16, "probe_gate": 16,
            "probe_tuning": 0, "probe_audit": 0, "heldout_permille": 500, "window_tokens": 16, "forget_budget": 1,
            "double_score": 0, "rank": 4, "alpha": 8, "lease_attempts": 20}
BEGAN = time.monotonic()


def path(*parts):
    return os.path.join(HOME, *parts)


def run(*args, code=0):
    r = subprocess.run([ALLUVIUM, *args], capture_output=True, text=True, timeout=120)
    if code is not None and r.returncode != code:
        raise SystemExit(f"alluvium {' '.join(args)}: exit {r.returncode}, expected {code}: {r.stderr}")
    return r.stdout


def ask(*args):
    return json.loads(run(*args, "-C", path("line"), "--json"))


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


class Process:
    def __init__(self, name, *args):
        self.name, self.args, self.p = name, args, None
        self.start()

    def start(self):
        with open(path(self.name + ".log"), "ab") as log:
            self.p = subprocess.Popen([ALLUVIUM, *self.args], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def kill(self):
        self.p.kill()
        self.p.wait()

    def stop(self):
        """TERM must end it cleanly."""
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            expect(self.p.wait(60) == 0, f"{self.name} to end with 0 after TERM")


def wait(what, condition, seconds=240):
    print(f"{time.monotonic() - BEGAN:6.1f} s: waiting for {what}", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if condition():
                return
        except SystemExit:
            pass  # the coordinator is on its way
        time.sleep(0.1)
    for log in glob.glob(path("*.log")):
        print(f"--- {os.path.basename(log)}\n" + "".join(open(log, errors="replace").readlines()[-12:]))
    raise SystemExit(f"FAILED: waited {seconds} s for {what}")


def jsonl(name, pattern, records):
    """The first `records` pieces of 300 characters of the files: small, so that the whole line takes a handful of rounds."""
    out, n = path(name + ".jsonl"), 0
    with open(out, "w") as f:
        for file in sorted(glob.glob(os.path.join(SOURCE, pattern))):
            text = open(file, errors="ignore").read()
            for at in range(0, min(len(text), 3000), 300):
                if n < records and text[at : at + 300].strip():
                    f.write(json.dumps({"id": f"{os.path.relpath(file, SOURCE)}#{at}", "text": text[at : at + 300]}) + "\n")
                    n += 1
    expect(n == records, f"{records} records of {pattern}, found {n}")
    return out


def counts_once(status):
    return all(sum(d["states"].values()) == d["segments"] for d in status["domains"])


def main():
    port = free_ports()
    settings = [w for k, v in SETTINGS.items() for w in ("--set", f"{k}={v}")]
    run("init", "-C", path("line"), "--base", BASE, "--anchor", jsonl("anchor", "*/*.h", 60), "--line", "test", "--port", str(port), *settings)
    for role, name in (("worker", "pool"), ("producer", "feeds"), ("subscriber", "server")):
        run("keys", "add", role, name, "-C", path("line"), "--out", path(name + ".join"))
    coordinator = Process("coordinator", "coordinator", "-C", path("line"), "--http-port", "0")
    wait("the coordinator", lambda: ask("status"))
    workers = [Process(f"worker-{i}", "worker", "--join", path("pool.join"), "--base", BASE, "--dir", path(f"worker-{i}"), "--threads", "1",
                       "--micro-rows", "128") for i in (1, 2)]
    subscriber = Process("subscriber", "subscribe", "--join", path("server.join"), "--follow", "latest", "--dir", path("adapters"))
    streams = {"code": jsonl("code", "model/*.c", 44), "scripts": jsonl("scripts", "scripts/*", 44)}
    for domain, file in streams.items():
        run("domains", "set", domain, "-C", path("line"))
        run("push", domain, file, "--join", path("feeds.join"), "--quiet")
    again = json.loads(run("push", "code", streams["code"], "--join", path("feeds.join"), "--json", "--quiet").splitlines()[-1])
    expect(again["records"] == 0 and again["already_stored"] > 0, f"a second push of a source to store nothing new: {again}")
    run("push", "nowhere", streams["code"], "--join", path("feeds.join"), "--quiet", code=3)
    run("push", "code", streams["code"], "--join", path("server.join"), "--quiet", code=77)

    wait("version 1", lambda: ask("status")["version"] >= 1)
    wait("a lease at work", lambda: any(l["phase"] == "granted" for l in ask("status")["round"]["lease_list"]))
    workers[0].kill()
    coordinator.kill()
    coordinator.start()
    wait("the coordinator after kill -9", lambda: ask("status"))
    expect(counts_once(ask("status")), "every segment to be in exactly one state after kill -9")
    workers[0].start()
    wait("version 3", lambda: ask("status")["version"] >= 3)

    versions = {v["version"]: v for v in ask("versions", "list")["versions"]}
    for n in (1, 2, 3):
        v = versions[n]
        expect(v["parent"] == n - 1 and v["segments"] > 0 and v["tokens"] > 0, f"version {n} to be a fact with a parent and text: {v}")
        expect(any(d["loss"] for d in v["domains"]), f"version {n} to have its row of losses")
        expect([f["kind"] for f in v["files"]] == ["peft", "gguf", "state"], f"version {n} to name its training state: {v['files']}")
    explained = ask("versions", "explain", "1")
    expect(explained["published"] is True, f"version 1 to be explained: {explained}")
    record = json.loads(open(streams["code"]).readline())["id"]
    expect(ask("trace", f"code/{record}"), "a record to be traced")

    held = json.loads(run("replay", "--dir", path("worker-2"), "-C", path("line"), "--json"))  # while that worker runs
    expect(held["segments"] == sum(d["segments"] for d in held["domains"]) > 0, f"a worker to hold some of the past: {held}")
    expect(all(0 < sum(d["by_age"]) <= d["segments"] and d["oldest"] < d["watermark"] for d in held["domains"]), f"ages within the history: {held}")
    run("plot", "-C", path("line"), "--out", path("line.svg"))

    # what was rolled back is pending again, at new offsets that link to the old text, and is learnt once more
    before = {d["domain"]: d["segments"] for d in ask("status")["domains"]}
    newest = ask("status")["version"]
    run("rollback", "1", "-C", path("line"))
    wait("the rollback", lambda: ask("status")["version"] > newest)
    rolled = next(v for v in ask("versions", "list")["versions"] if v["rollback_of"] == 1)
    expect(rolled["files"] == versions[1]["files"], "a rollback to publish version 1's very files under a new number")
    wait("text given back", lambda: sum(d["segments"] for d in ask("status")["domains"]) > sum(before.values()))
    wait("all of it learnt again", lambda: all(d["states"]["pending"] + d["states"]["leased"] + d["states"]["accepted"] == 0
                                               for d in ask("status")["domains"]), 600)
    final = ask("status")
    expect(counts_once(final) and final["quarantined"] == 0, f"every segment to be done once, none held: {final['domains']}")

    wait("the subscriber", lambda: os.path.realpath(path("adapters", "current")).endswith(f"-v{ask('status')['version']}"))
    current = os.path.realpath(path("adapters", "current"))
    expect({"adapter_model.safetensors", "adapter_config.json", "adapter.gguf"} <= set(os.listdir(current)), "PEFT and GGUF files in place")
    run("eval", "--base", BASE, "--adapter", current, "--json", streams["scripts"])
    run("keys", "revoke", "server", "-C", path("line"))
    expect(subscriber.p.wait(60) == 77, "a subscriber whose key was revoked to end with 77")
    run("subscribe", "--join", path("server.join"), "--dir", path("adapters"), code=77)
    for process in (*workers, coordinator):
        process.stop()
    check = ("worker", "--join", path("pool.join"), "--base", BASE, "--dir", path("worker-1"), "--threads", "1", "--micro-rows", "128", "--check")
    run(*check, code=5)  # nobody is there any more: said, and no waiting for ever


try:
    main()
finally:
    subprocess.run(["pkill", "-KILL", "-f", HOME], check=False)
    shutil.rmtree(HOME, ignore_errors=True)
end()
