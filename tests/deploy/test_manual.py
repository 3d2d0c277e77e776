#!/usr/bin/env python3
"""What is made from the option tables, used as its readers use it:  test_manual.py ALLUVIUM BUILD/deploy example.conf

- man pages: one per command, clean for man and for mandoc
- the example settings file: every default in it is the program's, and it is accepted whole
- completions: bash, zsh and fish are asked what they would offer
"""
import glob
import json
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

ALLUVIUM, MADE, EXAMPLE = sys.argv[1:4]
HERE = os.path.dirname(os.path.realpath(__file__))


def run(*argv, **more):
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, **more)


def commands():
    return [c["name"] for c in json.loads(run(ALLUVIUM, "--help", "--json").stdout)["commands"]]


def test_man():
    pages = {os.path.basename(p): p for p in glob.glob(os.path.join(MADE, "man", "*"))}
    expect(len(pages) == len(commands()) + 2, f"a page for every command, the program and its settings; there are {len(pages)}")
    for name in commands():
        expect(f"alluvium-{name.replace(' ', '-')}.1" in pages, f"a man page of alluvium {name}")
    for page in pages.values():
        lint = run("mandoc", "-T", "lint", "-W", "warning", page)
        expect(lint.returncode == 0, f"mandoc to be content: {lint.stdout}")
        man = run("man", "--warnings", "-EUTF-8", "-Tutf8", "-Z", "-l", page)
        expect(man.returncode == 0 and not man.stderr, f"man to be content with {page}: {man.stderr}")
    text = run("man", "-l", pages["alluvium-worker.1"], env={**os.environ, "MANWIDTH": "200"}).stdout
    expect("--micro-rows N" in text and "Default: 1024" in text and "ALLUVIUM_MICRO_ROWS" in text, "the page to name option, default, variable")


def settings(command, *more):
    r = run(ALLUVIUM, *command.split(), *more, "--show-settings")
    expect(r.returncode == 0, f"alluvium {command} to accept the example: {r.stderr}")
    return {m[1]: m[2] for m in re.finditer(r"^(\S+) = (.*?)  # ", r.stdout, re.M)}


def test_conf():
    with open(EXAMPLE, encoding="utf-8") as f:
        text = f.read()
    whole = re.sub(r"^#([a-z-]+ = \S)", r"\1", text, flags=re.M)
    rows = len(re.findall(r"^[a-z-]+ = ", whole, re.M))
    expect(rows > 60, f"an example that has the defaults, found {rows}")
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as f:
        f.write(whole.replace("log = warn\n", ""))
        f.flush()
        for command in commands():
            expect(settings(command) == settings(command, "--config", f.name), f"the example's values to be the defaults of {command}")
    for command in commands():
        for o in json.loads(run(ALLUVIUM, *command.split(), "--help", "--json").stdout)["options"]:
            has_default = o["default"] and o["type"] not in ("flag", "list") and not o["common"]
            expect(not has_default or o.get("why"), f"alluvium {command} --{o['name']}: its default needs a reason (.why in its row)")


BASH = 'source "$1/alluvium.bash"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _alluvium; printf "%s\\n" "${COMPREPLY[@]}"'


def offers(shell, line):
    folder = os.path.join(MADE, "completions")
    if shell == "bash":
        out = run("bash", "-c", BASH, "bash", folder, *line.split(" ")).stdout
    elif shell == "zsh":
        out = run("zsh", "-f", os.path.join(HERE, "complete.zsh"), folder, line, stdin=subprocess.DEVNULL).stdout
    else:
        with tempfile.TemporaryDirectory() as home:
            out = run("fish", "--no-config", "-c", f"source {folder}/alluvium.fish; complete -C '{line}'", env={**os.environ, "HOME": home}).stdout
    return {word.split("\t")[0].strip() for word in out.splitlines() if word}


def test_completions():
    cases = [
        ("alluvium pu", {"push"}, set()),
        ("alluvium keys ", {"add", "list", "revoke"}, {"push"}),
        ("alluvium keys add --o", {"--out"}, {"--base"}),
        ("alluvium worker --ba", {"--base", "--backend"}, {"--join"}),
        ("alluvium worker --backend ", {"blas", "ref"}, {"worker"}),
        ("alluvium train --st", {"--steps", "--step-tokens"}, {"--once"}),
        (f"alluvium worker --base {HERE}/test_man", {f"{HERE}/test_manual.py"}, set()),
    ]
    for shell in ("bash", "zsh", "fish"):
        for line, wanted, unwanted in cases:
            got = offers(shell, line)
            if shell == "zsh":  # it offers a path's last part
                wanted = {os.path.basename(w) for w in wanted}
                got = {os.path.basename(g) for g in got}
            expect(wanted <= got and not unwanted & got, f"{shell} to offer {sorted(wanted)} for {line!r}: {sorted(got)[:12]}")


test_man()
test_conf()
test_completions()
end()
