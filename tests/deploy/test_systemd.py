#!/usr/bin/env python3
"""The units, and what the roles tell systemd:  test_systemd.py ALLUVIUM TOY_BASE FOLDER-OF-UNITS

- systemd-analyze verify says nothing, systemd-analyze security at most 3.0, for every unit
- coordinator, worker and subscriber report ready, the first two beat, all report that they stop, and end with 0
- a secret is taken as systemd hands it over
"""
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

from rig import Line, end, expect, wait

ALLUVIUM, TOY, UNITS = sys.argv[1:4]
EXPOSURE_MAX = 3.0


def analyze(*argv):
    return subprocess.run(["systemd-analyze", *argv], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""})


def test_units():
    with tempfile.TemporaryDirectory() as folder:
        units = []
        for path in sorted(glob.glob(os.path.join(UNITS, "*.service"))):
            name = os.path.join(folder, os.path.basename(path).replace("@.", "@1."))
            text = re.sub(r"^ExecStart=\S+", f"ExecStart={ALLUVIUM}", open(path, encoding="utf-8").read(), flags=re.M)
            for target in {name, name.replace("@1.", "@.")}:
                with open(target, "w", encoding="utf-8") as f:
                    f.write(text)
            units.append(name)
            filters = re.findall(r"^SystemCallFilter=(.*)", text, re.M)
            expect(filters and "sched_setscheduler" in filters[-1], f"{name}: libzmq aborts when it may not set its threads' scheduling: {filters}")
        expect(len(units) == 3, f"three units, found {units}")
        verify = analyze("verify", "--man=no", *units)
        expect(verify.returncode == 0 and not verify.stdout + verify.stderr, f"verify to say nothing: {verify.stdout}{verify.stderr}")
        for unit in units:
            security = analyze("security", "--offline=true", "--no-pager", unit)
            level = re.search(r"Overall exposure level for \S+: ([\d.]+)", security.stdout)
            if expect(level is not None, f"an exposure level of {unit}: {security.stdout}{security.stderr}"):
                print(f"{os.path.basename(unit)}: exposure {level[1]}")
                expect(float(level[1]) <= EXPOSURE_MAX, f"{unit} to be exposed at most {EXPOSURE_MAX}: {level[1]}")


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, line, name):
        self.path = line.path(name)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(60)

    def hear(self, wanted):
        while True:
            heard = self.socket.recv(256).decode()
            if heard == wanted:
                return
            expect(heard == "WATCHDOG=1", f"nothing but beats before {wanted}: {heard}")


def stop(manager, process, name):
    process.send_signal(signal.SIGTERM)
    manager.hear("STOPPING=1")
    expect(process.wait(60) == 0, f"{name} to end with 0")


def test_roles():
    line = Line(ALLUVIUM, TOY)
    try:
        line.init()
        pool, server = line.key("worker", "pool"), line.key("subscriber", "server")
        c, w, s = (Manager(line, f"{n}.notify") for n in "cws")
        coordinator = line.start("coordinator", "-C", line.dir, "--http-port", "0", NOTIFY_SOCKET=c.path)
        c.hear("READY=1")
        expect(line.ask("status")["version"] == 0, "a coordinator that is ready to answer")
        c.hear("WATCHDOG=1")
        worker = line.start("worker", "--join", pool, "--base", line.base, "--dir", line.path("worker"), "--threads", "1", NOTIFY_SOCKET=w.path)
        w.hear("READY=1")
        w.hear("WATCHDOG=1")
        touched = os.stat(line.path("worker", "lock")).st_mtime_ns
        w.hear("WATCHDOG=1")
        expect(os.stat(line.path("worker", "lock")).st_mtime_ns > touched, "a beating worker to touch its lock, for probes")
        subscriber = line.start("subscribe", "--join", server, "--dir", line.path("adapters"), NOTIFY_SOCKET=s.path)
        s.hear("READY=1")
        wait("the subscriber to be in place", lambda: os.path.exists(line.path("adapters", "current")))
        stop(w, worker, "the worker")
        subscriber.send_signal(signal.SIGTERM)
        expect(subscriber.wait(60) == 0, "the subscriber to end with 0")
        stop(c, coordinator, "the coordinator")
    finally:
        line.close()


if not shutil.which("systemd-analyze"):
    sys.exit("systemd-analyze is missing (scripts/packages test)")
test_units()
test_roles()
end()
