"""A real line on a toy base, for programs in Python: a coordinator, keys, text, and whatever else is started.

    with toy_line.Line(alluvium, "serve") as line:
        line.start("worker", "worker", "--join", line.join("worker"), ...)

Its directory and processes go with it; a process that is still there is killed.
"""
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import toy_base

SETTINGS = {"segment_bytes": 256, "seq_tokens": 64, "step_tokens": 128, "lease_steps_min": 1, "round_wait_ms": 100, "rank": 4, "alpha": 8, "window_tokens": 32,
            "forget_budget": 1, "heldout_permille": 0,
            # a plain line: published as trained, without a file `state` (docs/how-to/settings.md)
            "average_permille": 0, "ema_permille": 0, "publish_permille": 1000, "distil_permille": 0, "history_distil_permille": 0,
            "history_boost_permille": 0, "anchor_boost_permille": 0}


def free_ports():
    while True:
        base = random.randrange(20000, 30000, 8)
        try:
            for port in range(base, base + 7):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue


class Line:
    def __init__(self, alluvium, name, *init):
        self.alluvium, self.name, self.processes, self.port = alluvium, name, [], free_ports()
        self.home = tempfile.mkdtemp(prefix=f"alluvium-{name}-")
        self.base = toy_base.write(self.path("base"))
        self.run("init", "-C", self.path("line"), "--base", self.base, "--line", name, "--port", str(self.port), *init,
                 *[w for k, v in SETTINGS.items() for w in ("--set", f"{k}={v}")])
        self.coordinator = self.start("coordinator", "coordinator", "-C", self.path("line"), "--port", str(self.port), "--http-port", "0")
        self.pushed = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for p in self.processes:
            if p.poll() is None:
                p.kill()
                p.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.home, *parts)

    def run(self, *words):
        r = subprocess.run([self.alluvium, *words], capture_output=True, text=True, timeout=120)
        if r.returncode:
            raise SystemExit(f"alluvium {' '.join(words)}: exit {r.returncode}: {r.stderr}")
        return r.stdout

    def ask(self, *words):
        return json.loads(self.run(*words, "-C", self.path("line"), "--json"))

    def join(self, role):
        """The join file of a key of this role, made at the first call."""
        path = self.path(role + ".join")
        if not os.path.exists(path):
            self.run("keys", "add", role, role, "-C", self.path("line"), "--out", path, "--port", str(self.port))
        return path

    def start(self, name, *words, env=None):
        with open(self.path(name + ".log"), "ab") as log:
            p = subprocess.Popen([self.alluvium, *words], stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=env)
        self.processes.append(p)
        return p

    def worker(self):
        return self.start("worker", "worker", "--join", self.join("worker"), "--base", self.base, "--dir", self.path("worker"),
                          "--threads", "1", "--micro-rows", "64")

    def push(self, records=40):
        self.pushed += 1
        text = self.path(f"text-{self.pushed}.jsonl")
        with open(text, "w") as f:
            for i in range(records):
                f.write(json.dumps({"id": f"r{self.pushed}.{i}", "text": f"line {i} of text {self.pushed} that says {i * 7}. " * 3}) + "\n")
        self.run("domains", "set", "notes", "-C", self.path("line"))
        self.run("push", "notes", text, "-C", self.path("line"), "--quiet")

    def version(self):
        return self.ask("status")["version"]

    def wait(self, what, condition, seconds=120):
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                for p in sorted(os.listdir(self.home)):
                    if p.endswith(".log"):
                        print(f"--- {p}\n" + "".join(open(self.path(p), errors="replace").readlines()[-12:]))
                raise SystemExit(f"FAILED: waited {seconds} s for {what}")
            time.sleep(0.01)

    @staticmethod
    def stop(p):
        """TERM must end it cleanly."""
        p.send_signal(signal.SIGTERM)
        return p.wait(60) == 0
