"""What the tests of deploy/ share: expectations, waiting for events, and a small line on a base that trains in milliseconds."""
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

SETTINGS = {"step_tokens": 64, "seq_tokens": 64, "lease_steps_min": 2, "lease_steps_max": 4, "segment_bytes": 256, "round_wait_ms": 500,
            "warmup_steps": 1, "look_1": 16, "look_2": 16, "look_3": 16, "probe_gate": 16, "probe_tuning": 0, "probe_audit": 0,
            "heldout_permille": 300, "window_tokens": 16, "forget_budget": 10, "double_score": 0, "rank": 4, "alpha": 8, "lease_attempts": 20}


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


def wait(what, condition, seconds=120):
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        try:
            if condition():
                return
        except (SystemExit, ValueError, KeyError):
            pass  # not there yet
        time.sleep(0.05)
    raise SystemExit(f"FAILED: waited {seconds} s for {what}")


class Line:
    """A line in a scratch directory, on a port of its own; `home` goes at the end of the test, by close()."""

    def __init__(self, alluvium, toy_base, **settings):
        self.alluvium, self.home, self.port = alluvium, tempfile.mkdtemp(prefix="alluvium-deploy-"), free_ports()
        self.base, self.dir, self.processes = self.path("base"), self.path("line"), []
        subprocess.run([toy_base, self.base], check=True)
        self.settings = [word for k, v in {**SETTINGS, **settings}.items() for word in ("--set", f"{k}={v}")]

    def path(self, *parts):
        return os.path.join(self.home, *parts)

    def text(self, name, records):
        """A file of short records, all different."""
        draw = random.Random(name)
        with open(self.path(name), "w", encoding="ascii") as f:
            for i in range(records):
                words = " ".join(draw.choice(("delta", "river", "silt", "bank", "flood", "layer")) for _ in range(24))
                f.write(json.dumps({"id": f"{name}-{i}", "text": f"{name} {i}: {words}\n"}) + "\n")
        return self.path(name)

    def init(self):
        self.run("init", "-C", self.dir, "--base", self.base, "--anchor", self.text("general.jsonl", 60), "--line", "toy", "--port",
                 str(self.port), *self.settings)

    def key(self, role, name):
        self.run("keys", "add", role, name, "-C", self.dir, "--out", self.path(name + ".join"))
        return self.path(name + ".join")

    def run(self, *args, code=0):
        r = subprocess.run([self.alluvium, *args], capture_output=True, text=True, timeout=120)
        if code is not None and r.returncode != code:
            raise SystemExit(f"alluvium {' '.join(args)}: exit {r.returncode}, expected {code}: {r.stderr}")
        return r.stdout

    def ask(self, *args):
        return json.loads(self.run(*args, "-C", self.dir, "--json"))

    def start(self, *args, **environment):
        with open(self.path(args[0] + ".log"), "ab") as log:
            p = subprocess.Popen([self.alluvium, *args], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **environment})
        self.processes.append(p)
        return p

    def close(self):
        for p in self.processes:
            if p.poll() is None:
                p.kill()
                p.wait()
        shutil.rmtree(self.home, ignore_errors=True)
