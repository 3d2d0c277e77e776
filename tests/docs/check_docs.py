#!/usr/bin/env python3
"""Holds the documents to the tree and to the program:  check_docs.py ROOT ALLUVIUM

- every relative link of a *.md leads to a file, and to a heading of it where it names one
- every `alluvium ...` in a code block or in code is a command with options that its --help knows
- every test, script and benchmark a document names in code is there
- docs/reference/cli.md is what scripts/gen-cli-docs prints, deploy/example.conf what scripts/gen-from-options does
- no document names a path of the machine it was written on
"""
import glob
import os
import re
import shlex
import subprocess
import sys

ROOT, ALLUVIUM = os.path.realpath(sys.argv[1]), os.path.realpath(sys.argv[2])
SKIP = {"build", "work", ".git", "node_modules"}
MACHINE = re.compile(r"/work/|/tmp/|/root/|/home/\w+/")
bad, checked = [], 0


def documents():
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(f for f in folders if f not in SKIP and not (f == "golden" and folder.endswith("tests")))
        for name in sorted(files):
            if name.endswith(".md"):
                yield os.path.join(folder, name)


def offence(path, line, text):
    bad.append(f"{os.path.relpath(path, ROOT)}:{line}: {text}")


def run(*argv):
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}).stdout


def command_table():
    """{"keys add": {"--out", "-o", ...}}, from the program's own help."""
    table = {}
    for line in run(ALLUVIUM, "--help").split("Commands:\n", 1)[1].splitlines():
        m = re.match(r"  ([a-z]+(?: [a-z]+)?)  ", line)
        if not m:
            break
        text = run(ALLUVIUM, *m[1].split(), "--help")
        takes = {}  # option -> does it take a value?
        for short, name, value in re.findall(r"^  (-\w,)? *(--[a-z-]+)( \S+)?", text, re.M):
            takes[name] = bool(value)
            if short:
                takes[short[:-1]] = bool(value)
        takes.update({"--help": False, "-h": False})
        table[m[1]] = takes
    return table


def commands_of(text):
    """(line, words) of each `alluvium ...` in code, continued lines joined; what is piped or redirected is cut off."""
    fenced, block, start = False, None, 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        if fenced or line.startswith("    "):
            code = [line.strip()]
        else:
            code = re.findall(r"`([^`]+)`", line)
        if block is not None:
            code, number_here = [block + " " + (code[0] if code else "")], start
            block = None
        else:
            number_here = number
        for c in code:
            if c.endswith("\\"):
                block, start = c[:-1].strip(), number_here
                continue
            for part in re.split(r"[|;&]+|\$\(|\s[<>]{1,2}\s?", re.sub(r"\s+#\s.*", "", c).removeprefix("$ ")):
                words = part.strip().rstrip(")")
                if re.match(r"(\S*/)?alluvium [a-z-]", words):
                    yield number_here, words


def check_command(path, line, words, table):
    global checked
    try:
        argv = shlex.split(words.replace("...", " "))[1:]
    except ValueError as e:
        return offence(path, line, f"{words}: {e}")
    name = " ".join(argv[:2])
    if name not in table:
        name = argv[0]
    if argv[0] in ("--help", "--version", "COMMAND") or name.endswith(":"):  # the last: an error that is quoted
        return
    if name not in table:
        return offence(path, line, f"no such command: alluvium {name}")
    checked += 1
    for word in argv[len(name.split()):]:
        option = word.split("=", 1)[0]
        if re.match(r"--?[a-z]", option, re.I) and option not in table[name]:
            offence(path, line, f"alluvium {name} has no option {option}")


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def check_links(path, text):
    global checked
    for number, line in enumerate(text.splitlines(), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", line):
            if re.match(r"[a-z]+:", target):
                continue
            checked += 1
            name, _, part = target.partition("#")
            there = os.path.normpath(os.path.join(os.path.dirname(path), name)) if name else path
            if not os.path.exists(there):
                offence(path, number, f"the link leads nowhere: {target}")
            elif part:
                with open(there, encoding="utf-8") as f:
                    headings = {anchor(h) for h in re.findall(r"^#+ (.*)", f.read(), re.M)}
                if part not in headings:
                    offence(path, number, f"no such heading: {target}")


def known_names():
    """Names a document may call a test: ctest names, test functions, and files."""
    names = set()
    for folder, _, files in os.walk(os.path.join(ROOT, "tests")):
        for f in files:
            if f.endswith((".c", ".txt", ".sh", ".py", ".mjs")):
                with open(os.path.join(folder, f), encoding="utf-8", errors="replace") as text:
                    names.update(re.findall(r"\b(?:test|bench)_\w+", text.read()))
                names.add(f.rsplit(".", 1)[0])
    with open(os.path.join(ROOT, "bench", "CMakeLists.txt"), encoding="utf-8") as f:
        names.update(re.findall(r"bench_\w+", f.read()))
    return names


def main():
    global checked
    table, names = command_table(), known_names()
    assert len(table) > 20, "the program's help lists too few commands"
    for path in documents():
        with open(path, encoding="utf-8") as f:
            text = f.read()
        check_links(path, text)
        for line, words in commands_of(text):
            check_command(path, line, words, table)
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE.search(line):
                offence(path, number, f"names a path of a machine: {MACHINE.search(line)[0]}")
            for name in re.findall(r"`((?:test|bench)_\w+)`", line):
                checked += 1
                if name not in names:
                    offence(path, number, f"there is no {name}")
            for script in re.findall(r"(?<![\w/])scripts/[\w.*-]*[\w*]", line):
                if not glob.glob(os.path.join(ROOT, script.rstrip("."))):
                    offence(path, number, f"there is no {script}")
    with open(os.path.join(ROOT, "docs/reference/cli.md"), encoding="utf-8") as f:
        if f.read() != run(os.path.join(ROOT, "scripts/gen-cli-docs"), ALLUVIUM):
            offence(os.path.join(ROOT, "docs/reference/cli.md"), 1, "is not current: scripts/gen-cli-docs ALLUVIUM")
    with open(os.path.join(ROOT, "deploy/example.conf"), encoding="utf-8") as f:
        example = f.read()
        if not example or example != run(os.path.join(ROOT, "scripts/gen-from-options"), ALLUVIUM, "conf"):
            offence(os.path.join(ROOT, "deploy/example.conf"), 1, "is not current: scripts/gen-from-options ALLUVIUM conf")
    if checked < 100:
        bad.append(f"only {checked} links, commands and names were found: the check itself is broken")
    print("\n".join(bad) or f"{checked} links, commands and names hold")
    return 1 if bad else 0


sys.exit(main())
