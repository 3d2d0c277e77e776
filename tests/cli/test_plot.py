#!/usr/bin/env python3
"""The picture of `alluvium plot`, by its structure:  test_plot.py ALLUVIUM"""
import json
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

ALLUVIUM = sys.argv[1]
SVG = "{http://www.w3.org/2000/svg}"


def plot(versions, *args, code=0):
    text = versions if isinstance(versions, str) else json.dumps(versions)
    r = subprocess.run([ALLUVIUM, "plot", "--from", "-", *args], input=text, capture_output=True, text=True, timeout=60)
    expect(r.returncode == code, f"exit {code}, got {r.returncode}: {r.stderr}")
    return r


def version(n, domains, **more):
    return {"version": n, "created_s": 1700000000 + 60 * n, "aliases": ["latest"] if n == 9 else [], "domains": domains,
            "metrics": {"learnt_mean": 0.1 * n, "peak_forgetting": 0.01 * n - 0.02} if n else None, **more}


def row(name, loss, learnt):
    return {"domain": name, "loss": loss, "learnt": learnt}


def classes(root, word):
    return [e for e in root.iter() if word in (e.get("class") or "").split()]


def check(versions, domains):
    svg = plot({"versions": versions, "next": None}).stdout
    root = ET.fromstring(svg)
    marks = [e for e in classes(root, "mark") if e.find(SVG + "title") is not None]
    expect(root.tag == SVG + "svg" and root.get("viewBox"), "an svg with a viewBox")
    expect(len(marks) == len(versions), f"a mark for each of {len(versions)} versions, got {len(marks)}")
    expect(len(classes(root, "cell")) == len(versions) * len(domains), "a cell for each domain of each version")
    curves = [e for e in classes(root, "curve") if e.find(SVG + "title") is not None]
    expect([e.find(SVG + "title").text for e in curves] == domains, f"a curve for each domain: {[e.find(SVG + 'title').text for e in curves]}")
    measured = [v for v in versions if v["metrics"]]
    expect(len(classes(root, "point")) == len(measured), "a point for each measured version")
    words = " ".join("".join(e.itertext()) for e in root.iter(SVG + "text"))
    for label in ("version", "loss, nats per token", "learnt since the base, nats per token", "forgotten, nats per token", "published"):
        expect(label in words, f"the label {label!r}")
    expect("prefers-color-scheme" in svg and not re.search(r"(href|src|url\(|@import)", svg), "both themes, and nothing from outside")
    numbers = [float(n) for e in root.iter() for a in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height") if a in e.attrib for n in [e.get(a)]]
    width, height = map(float, root.get("viewBox").split()[2:])
    expect(all(-1 <= n <= max(width, height) for n in numbers), "everything within the picture")
    return root


def main():
    names = ["general", "a&<b>\"c", "notes"]
    versions = [version(n, [row(names[0], 3.0 - 0.01 * n, 0.01 * n), row(names[1], None, None) if n < 4 else row(names[1], 2.5, -0.1),
                            row(names[2], 4 - 0.2 * n, 0.2 * n)]) for n in range(9, -1, -1)]
    root = check(versions, names)
    expect(len(classes(root, "none")) >= 4, "what is not measured to be shown so")
    expect(any(e.text == "latest" for e in root.iter(SVG + "text")), "the alias over its version")
    check([version(0, [row("general", None, None)])], ["general"])
    check([version(0, [])], [])
    many = [f"domain-{i}" for i in range(30)]
    check([version(n, [row(d, 3 + i / 10, n / 100) for i, d in enumerate(many)]) for n in range(120, 20, -1)], many)
    flat = [version(n, [row("d", 2.0, 0.0)], metrics={"learnt_mean": 0.0, "peak_forgetting": 0.0}) for n in range(3, -1, -1)]
    check(flat, ["d"])
    huge = [version(n, [row("d", 1e300 if n else -1e300, 1e308)]) for n in range(1, -1, -1)]
    ET.fromstring(plot(huge).stdout)
    shown = ET.fromstring(plot({"versions": versions}, "--last", "3").stdout)
    expect(len([e for e in classes(shown, "mark") if e.find(SVG + "title") is not None]) == 3, "the newest three alone")
    for wrong in ("", "{", "[]", "{}", '{"versions": 7}', '[{"version": "x", "domains": []}]', '[{"version": 1}]', "[1]"):
        expect(plot(wrong, code=65).stderr.startswith("alluvium plot: error:"), f"{wrong!r} to be refused in words")
    odd = plot([{"version": 1, "domains": [3, {}, {"domain": None, "loss": "x"}], "aliases": [1], "metrics": [], "created_s": -1e9}])
    ET.fromstring(odd.stdout)
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "line.svg")
        said = json.loads(plot({"versions": versions}, "--out", out, "--json").stdout)
        expect(said == {"file": out, "versions": 10, "bytes": os.path.getsize(out)}, f"what --json says: {said}")
        ET.parse(out)
    plot({"versions": versions}, "--json", code=2)


main()
end()
