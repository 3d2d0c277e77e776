#!/usr/bin/env python3
"""What a coordinator says over HTTP: probes, metrics, JSON, the page; and the alert rules over the metrics.

usage: test_dashboard.py PRETEND ALLUVIUM SOURCE_DIR

PRETEND (tests/coordinator/pretend.c) is a line with a past. promtool and node are fetched by scripts/test.
The JavaScript is run by node (page_check.mjs), not by a browser: scripts/screenshots does that.
"""
import html.parser
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

PRETEND, ALLUVIUM, SOURCE = map(os.path.realpath, sys.argv[1:4])
PROMTOOL = os.path.join(SOURCE, "build", "cache", "promtool")
PROMETHEUS = os.path.join(SOURCE, "deploy", "prometheus")
VERSIONS = 12  # the first stream comes again in the last two: what a rollback leaves behind was better


def promtool(*args, text=None):
    r = subprocess.run([PROMTOOL, *args], input=text, capture_output=True, text=True, cwd=PROMETHEUS, timeout=240)
    expect(r.returncode == 0 and not (text and (r.stdout or r.stderr)), f"promtool {' '.join(args)}: {r.stdout}{r.stderr}")


class Line:
    """A pretended line; ends with the block."""

    def __init__(self, there, *story):
        self.there, self.home, self.story = there, tempfile.mkdtemp(prefix="alluvium-dashboard-"), story

    def __enter__(self):
        self.p = subprocess.Popen([PRETEND, os.path.join(self.home, "line"), "0", "0", str(VERSIONS), *self.story],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        word, *port = self.p.stdout.readline().split()
        assert word == "ready", word
        self.port = int(port[0])
        end = time.monotonic() + 30
        while not self.there(self.json("/status.json")):  # what is shown may be a second old
            assert time.monotonic() < end, self.json("/status.json")
            time.sleep(0.1)
        return self

    def stop(self):
        if self.p.returncode is None:
            self.p.stdin.close()
            expect(self.p.wait(60) == 0, "the pretended line to end cleanly")

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.home, ignore_errors=True)

    def get(self, path, headers=None, host=None):
        c = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        c.putrequest("GET", path, skip_host=True)
        for name, value in {"Host": host or f"127.0.0.1:{self.port}", **(headers or {})}.items():
            c.putheader(name, value)
        c.endheaders()
        answer = c.getresponse()
        body = answer.read().decode()
        c.close()
        return answer, body

    def json(self, path):
        return json.loads(self.get(path)[1])


def check_probes(line):
    for path in ("/livez", "/readyz"):
        answer, body = line.get(path)
        expect(answer.status == 200 and body == "ok\n", f"{path} to say ok: {answer.status} {body}")
    answer, body = line.get("/readyz?verbose")
    expect(body == "loop: ok\ndatabase: ok\ndisk: ok\nhandshakes: ok\nok\n", f"/readyz?verbose to list its checks: {body}")
    answer, body = line.get("/livez", host="evil.example")
    expect(answer.status == 421, f"a foreign name to be refused: {answer.status}")
    answer, body = line.get("/")
    policy = answer.getheader("Content-Security-Policy") or ""
    expect("default-src 'none'" in policy and "unsafe" not in policy, f"a strict policy: {policy}")


def check_slow_clients(line):
    """Clients that begin a request and never end it are in nobody's way: not in a probe's, not in the line's."""
    slow = []
    for _ in range(150):
        s = socket.create_connection(("127.0.0.1", line.port), timeout=30)
        s.sendall(b"GET /status.json HTTP/1.1\r\nHost: 127")
        slow.append(s)
    seq = line.json("/status.json")["applied_seq"]
    answer, body = line.get("/livez")
    expect(answer.status == 200 and seq > 0, f"a probe beside 150 slow clients: {answer.status} {body}")
    r = subprocess.run([ALLUVIUM, "status", "-C", os.path.join(line.home, "line"), "--json"], capture_output=True, text=True, timeout=60)
    expect(r.returncode == 0 and json.loads(r.stdout)["version"] == VERSIONS, f"the line beside 150 slow clients: {r.stderr}")
    for s in slow:
        s.close()


def check_picture(line):
    r = subprocess.run([ALLUVIUM, "plot", "-C", os.path.join(line.home, "line")], capture_output=True, text=True, timeout=60)
    expect(r.returncode == 0, f"alluvium plot: {r.stderr}")
    marks = [e for e in ET.fromstring(r.stdout).iter("{http://www.w3.org/2000/svg}path") if e.get("class") == "mark" and len(e)]
    expect(len(marks) == VERSIONS + 1, f"a mark a version, got {len(marks)}")


def check_low_disk(line):
    """The same line, served where little more than the reserve is free: alive, and not ready, and both say why."""
    line.stop()
    home = os.path.join(line.home, "line")
    disk = os.statvfs(home)
    reserve = int(0.7 * disk.f_bavail * disk.f_frsize)
    p = subprocess.Popen([ALLUVIUM, "coordinator", "-C", home, "--http-port", str(line.port), "--reserve", str(reserve)], stderr=subprocess.DEVNULL)
    try:
        end, status = time.monotonic() + 60, {}
        while not status.get("disk_low"):
            assert time.monotonic() < end and p.poll() is None, f"the disk does not become low: {status.get('disk_low')}"
            time.sleep(0.1)
            try:
                status = line.json("/status.json")
            except OSError:
                pass  # it is on its way
        answer, body = line.get("/readyz")
        expect(answer.status == 503 and body == "disk: low: pushes are put off\n", f"/readyz to say why not: {answer.status} {body}")
        answer, body = line.get("/readyz?verbose")
        expect(answer.status == 503 and "loop: ok\n" in body and not body.endswith("\nok\n"), f"/readyz?verbose to list what is well, too: {body}")
        answer, body = line.get("/livez")
        expect(answer.status == 200, f"/livez not to depend on the disk: {answer.status}")
        expect("\nalluvium_disk_low 1\n" in line.get("/metrics")[1], "the metric as well")
        state = {"status": status, "versions": line.json("/versions.json")["versions"], "verdicts": [], "held": line.json("/quarantine.json"),
                 "now_s": time.time(), "expect": ["The disk is nearly full", "No worker has come yet", "Nobody subscribes yet", "No round has been judged yet"]}
        draw(state)
    finally:
        p.terminate()
        expect(p.wait(60) == 0, "the coordinator to end cleanly")


def check_metrics(line):
    answer, text = line.get("/metrics")
    expect(answer.getheader("Content-Type").startswith("text/plain; version=0.0.4"), "the type of Prometheus' text")
    promtool("check", "metrics", text=text)
    path = os.path.join(line.home, "metrics.txt")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    r = subprocess.run([os.path.join(SOURCE, "scripts", "gen-metrics-docs"), path, "--check"], capture_output=True, text=True)
    expect(r.returncode == 0, r.stderr)

    samples = [re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", s).groups() for s in text.splitlines() if not s.startswith("#")]
    value = {(name, labels): float(v) for name, labels, v in samples}
    expect(len(value) == len(samples), "no sample twice")
    expect(value["alluvium_version", None] == VERSIONS, "the newest version")
    expect(value["alluvium_alias_version", 'alias="canary"'] == VERSIONS, "an alias")
    expect(value["alluvium_workers", None] == 3 and value["alluvium_subscribers", None] == 2, "who is here")
    expect(value["alluvium_published_timestamp_seconds", None] > 1.7e9, "when the newest version came")
    expect(sorted(v for (n, _), v in value.items() if n == "alluvium_worker_lease_steps_done") == [6], "steps of the lease at work")
    expect(sorted(v for (n, _), v in value.items() if n == "alluvium_subscriber_serving_version") == [VERSIONS - 1, VERSIONS],
           "what subscribers serve")
    known = {"domain", "worker", "subscriber", "alias", "phase", "state", "plane", "result", "direction", "version", "line"}
    labels = {l for _, inside, _ in samples for l in re.findall(r'(\w+)="', inside or "")}
    expect(labels <= known, f"no label without a bound: {labels - known}")
    used = set(re.findall(r"\b(?:alluvium|process)_\w+", open(os.path.join(PROMETHEUS, "alerts.yml"), encoding="utf-8").read()))
    expect(used and used <= {name for name, _, _ in samples} | {"alluvium_worker_lease_age_seconds"},
           f"alerts to be over metrics there are: {used - {name for name, _, _ in samples}}")
    promtool("check", "rules", "alerts.yml")
    promtool("test", "rules", "alerts_test.yml")


def check_json(line):
    status = line.json("/status.json")
    expect(status["version"] == VERSIONS and status["round"]["phase"] == "open", f"the status: {status['version']} {status['round']}")
    answer, first = line.get("/versions.json?n=2")
    again, nothing = line.get("/versions.json?n=2", {"If-None-Match": answer.getheader("ETag")})
    expect(again.status == 304 and not nothing, "what has not changed not to be sent again")
    pages, before = [], None
    while len(pages) < 10:
        page = line.json("/versions.json?n=2" + (f"&before={before}" if before else ""))
        pages.append([v["version"] for v in page["versions"]])
        before = page["next"]
        if before is None:
            break
    expect(sum(pages, []) == list(range(VERSIONS, -1, -1)), f"older versions page by page: {pages}")
    newest = line.json("/versions.json?n=1")["versions"][0]
    gains = [d["learnt"] for d in newest["domains"] if d["learnt"] is not None]
    expect(abs(newest["metrics"]["learnt_mean"] - sum(gains) / len(gains)) < 1e-9, f"the mean of what was learnt: {newest['metrics']}")
    expect(newest["metrics"]["peak_forgetting"] is not None and newest["metrics"]["general_delta"] is None, "what is measured, and what is not")
    verdicts = line.json("/verdicts.json?n=50")
    expect([v["version"] for v in verdicts["verdicts"]] == list(range(VERSIONS, 0, -1)) and verdicts["next"] is None,
           f"the verdicts, newest first: {[v['version'] for v in verdicts['verdicts']]}")
    for path in ("/versions.json?n=51", "/versions.json?n=0", "/versions.json?n=", "/versions.json?before=x", "/verdicts.json?n=-1",
                 "/versions.json?before=99999999999999999999"):
        answer, body = line.get(path)
        expect(answer.status == 400 and json.loads(body)["error"]["status"] == "usage", f"{path} to be refused: {answer.status} {body}")


def check_rollback(line):
    """A rollback has the losses of the version it repeats, in that one's lineage."""
    newest, *_, back = line.json("/versions.json?n=4")["versions"]
    expect((newest["version"], newest["parent"], newest["rollback_of"], back["version"]) == (VERSIONS + 1, VERSIONS - 2, VERSIONS - 2, VERSIONS - 2),
           f"a rollback: {newest['version']} of {newest['rollback_of']}, beside {back['version']}")
    same = ("domain", "loss", "learnt", "reference", "forgetting")
    expect([[d[k] for k in same] for d in newest["domains"]] == [[d[k] for k in same] for d in back["domains"]] != [], "the same losses")
    expect(newest["metrics"]["learnt_mean"] == back["metrics"]["learnt_mean"] and not any(d["fresh_segments"] for d in newest["domains"]),
           "the same content, and nothing learnt")
    lineage = [v for v in line.json("/versions.json?n=50")["versions"] if 0 < v["version"] <= VERSIONS - 2]
    for d in newest["domains"]:
        before = [0] + [x["learnt"] for v in lineage for x in v["domains"] if x["domain"] == d["domain"] and x["learnt"] is not None]
        expect(d["learnt"] is None or abs(d["peak_forgetting"] - (max(before) - d["learnt"])) < 1e-8,
               f"{d['domain']} to be compared with its own lineage alone: {d['peak_forgetting']}, {before}")


class Tags(html.parser.HTMLParser):
    """References of a page, and whether its elements are closed."""
    VOID = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.references, self.inline, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.references += [attrs[a] for a in ("src", "href", "action", "srcset") if a in attrs]
        self.inline += [a for a in attrs if a == "style" or a.startswith("on")] + (["script"] if tag == "script" and "src" not in attrs else [])
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            raise ValueError(f"</{tag}> does not close what is open")


def check_page(line):
    _, page = line.get("/")
    tags = Tags()
    tags.feed(page)
    tags.close()
    expect(not tags.open, f"every element to be closed: {tags.open}")
    expect(not tags.inline, f"nothing inline, which the policy forbids: {tags.inline}")
    expect(len(set(tags.ids)) == len(tags.ids), "ids to be unique")
    for reference in tags.references:
        if reference.startswith("#"):
            expect(reference[1:] in tags.ids, f"{reference} to lead somewhere")
        else:
            expect(reference.startswith("/") and line.get(reference)[0].status == 200, f"{reference} to be served from here")
    for name in ("index.html", "page.css", "page.js", "view.js", "icon.svg"):
        with open(os.path.join(SOURCE, "coordinator", "page", name), encoding="utf-8") as f:
            outside = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", f.read().replace("http://www.w3.org/2000/svg", ""))
        expect(not outside, f"{name} to reference nothing outside: {outside}")


def check_drawing(line, *words):
    """The page drawn from this line's answers by the very code that browsers run."""
    state = {"status": line.json("/status.json"), "versions": line.json("/versions.json")["versions"],
             "verdicts": line.json("/verdicts.json")["verdicts"], "held": line.json("/quarantine.json"), "now_s": time.time(), "expect": words}
    draw(state)


def draw(state):
    here = os.path.dirname(os.path.realpath(__file__))
    r = subprocess.run(["node", os.path.join(here, "page_check.mjs"), os.path.join(SOURCE, "coordinator", "page", "view.js")],
                       input=json.dumps(state), capture_output=True, text=True, timeout=60)
    expect(r.returncode == 0, f"the page to be drawn: {r.stdout}{r.stderr}")


def main():
    with Line(lambda s: any(l["done"] for l in s["round"]["lease_list"])) as line:
        check_probes(line)
        check_slow_clients(line)
        check_picture(line)
        check_metrics(line)
        check_json(line)
        check_page(line)
        check_drawing(line, "Nothing needs you", "6 of 18 steps", f"v{VERSIONS}", "http://gpu-1:8000", "Nearest to its budget")
        check_low_disk(line)
    with Line(lambda s: s["stopped"] and s["version"] > VERSIONS and any(d["pending_bytes"] for d in s["domains"]), "trouble") as line:
        status, held = line.json("/status.json"), line.json("/quarantine.json")
        expect(status["stopped"] and "refused" in status["alarm"], f"an alarm: {status['alarm']}")
        expect(held["total"] == 1 and "attempts" in held["quarantine"][0]["reason"], f"what is held, and why: {held}")
        refused = [v for v in line.json("/verdicts.json")["verdicts"] if not v["published"]]
        expect(len(refused) >= 3, "refused rounds among the verdicts")
        check_rollback(line)
        check_drawing(line, f"rollback of v{VERSIONS - 2}", "Leasing has stopped", "1 lease held back", "connection refused", "Would forget: general")


main()
end()
