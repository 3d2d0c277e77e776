#!/usr/bin/env python3
"""The main job on this machine: one line, two workers, four streams, published versions, a subscriber.

Called by scripts/quickstart once packages, build, base and text are in place. Everything it makes lies in work/quickstart.
Its last line is one line of JSON.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), ".."))
HOME = os.path.join(ROOT, "work", "quickstart")
ALLUVIUM = os.path.join(ROOT, "build", "release", "alluvium")
BASE = os.path.join(ROOT, "build", "cache", "SmolLM2-135M-Instruct.Q4_1.gguf")
TEXT = os.path.join(ROOT, "build", "text")
STREAMS = ["ocaml", "health", "finance", "scripture"]
PORT = 17400
# Small rounds and probes, so that three versions fit in minutes on two cores. The defaults are for real lines. A budget of 0.1
# nats is what so few short windows can decide: with 0.05 a round of which nothing was forgotten was refused as undecided.
SETTINGS = {"lease_steps_min": 6, "lease_steps_max": 7, "round_wait_ms": 5000, "warmup_steps": 2, "lr": 1e-3,
            "look_1": 16, "look_2": 18, "look_3": 20, "probe_gate": 20, "probe_tuning": 4, "probe_audit": 4, "window_tokens": 128,
            "heldout_permille": 80, "forget_budget": 0.1, "error_rate": 0.05, "double_score": 0}
PROMPTS = {"ocaml": "let rec fold_left f acc = function\n  | [] ->", "health": "E11 Type 2 diabetes mellitus\n",
           "finance": "To record a stock split in GnuCash,", "scripture": "And it came to pass"}


class Failed(Exception):
    """What went wrong, for a person."""


def path(*parts):
    return os.path.join(HOME, *parts)


def call(*args, **kw):
    """One command of alluvium; its JSON, or Failed with its own words."""
    r = subprocess.run([ALLUVIUM, *args], capture_output=True, text=True, **kw)
    if r.returncode:
        raise Failed(f"alluvium {' '.join(args[:3])} ended with {r.returncode}: {r.stderr.strip() or r.stdout.strip()}")
    return r.stdout


def ask(*args):
    return json.loads(call(*args, "-C", path("line"), "--json"))


def say(step, what, text):
    print(f"[{step}/8] {what:<10} {text}", flush=True)


class Progress:
    """One line that is drawn over on a terminal; elsewhere a line every ten seconds."""

    def __init__(self):
        self.tty, self.last, self.open = sys.stdout.isatty(), 0.0, False

    def draw(self, text):
        if self.tty:
            print("\r\033[K" + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)
            self.open = True
        elif time.monotonic() - self.last > 10:
            print("      " + text, flush=True)
            self.last = time.monotonic()

    def end(self):
        if self.open:
            print("\r\033[K", end="", flush=True)
            self.open = False


class Processes:
    """The line's processes, each with its log; stopped in the order that lets each say goodbye to the next."""

    def __init__(self):
        self.running = []

    def start(self, name, *args):
        log = open(path("log", name + ".log"), "ab")
        p = subprocess.Popen([ALLUVIUM, *args], stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        self.running.append((name, p))
        return p

    def check(self):
        for name, p in self.running:
            if p.poll() is not None:
                with open(path("log", name + ".log"), errors="replace") as f:
                    tail = "".join(f.readlines()[-5:])
                raise Failed(f"{name} ended with {p.returncode}; the end of its log (work/quickstart/log/{name}.log):\n{tail}")

    def stop(self):
        for name, p in reversed(self.running):
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
                try:
                    p.wait(20)
                except subprocess.TimeoutExpired:
                    p.kill()
                    p.wait()
        self.running = []


def make_line():
    if os.path.exists(path("ready")):
        say(5, "line", "in place: work/quickstart/line")
        return
    shutil.rmtree(HOME, ignore_errors=True)
    os.makedirs(path("log"))
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    call("init", "-C", path("line"), "--base", BASE, "--anchor", os.path.join(TEXT, "general.jsonl"),
         "--line", "quickstart", "--port", str(PORT), *settings)
    for role, name in (("worker", "pool"), ("producer", "feeds"), ("subscriber", "server")):
        call("keys", "add", role, name, "-C", path("line"), "--out", path(name + ".join"))
    open(path("ready"), "w").close()
    say(5, "line", "made: work/quickstart/line (keys, settings, version 0), anchor taken in")


def start_all(processes):
    processes.start("coordinator", "coordinator", "-C", path("line"), "--http-port", "0")
    wait_until(processes, 60, "the coordinator to answer", lambda: quiet_status() is not None)
    for i in (1, 2):
        processes.start(f"worker-{i}", "worker", "--join", path("pool.join"), "--base", BASE, "--dir", path(f"worker-{i}"),
                        "--threads", "1")
    processes.start("subscriber", "subscribe", "--join", path("server.join"), "--follow", "latest", "--dir", path("adapters"))
    say(6, "start", f"one coordinator (port {PORT}), two workers, one subscriber; logs in work/quickstart/log")


def quiet_status():
    try:
        return ask("status")
    except Failed:
        return None


def wait_until(processes, seconds, what, condition):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        processes.check()
        if condition():
            return
        time.sleep(0.2)
    raise Failed(f"gave up waiting for {what} after {seconds} s; see work/quickstart/log")


def push_all():
    known = {d["domain"] for d in ask("status")["domains"]}
    total = 0
    for domain in STREAMS:
        if domain not in known:
            call("domains", "set", domain, "-C", path("line"))
        out = call("push", domain, os.path.join(TEXT, domain + ".jsonl"), "--join", path("feeds.join"), "--json", "--quiet")
        total += json.loads(out.strip().splitlines()[-1])["bytes"]
    say(7, "push", f"{len(STREAMS)} streams, {total:,} new bytes stored" if total else f"{len(STREAMS)} streams, all stored before")


def versions():
    return sorted(ask("versions", "list")["versions"], key=lambda v: v["version"])


def learn(processes, wanted):
    progress, began = Progress(), time.monotonic()
    first = done = len(versions()) - 1
    while done < wanted:
        processes.check()
        status = ask("status")
        if status["stopped"]:
            raise Failed(f"leasing stopped: {status['alarm']}\n(why: build/release/alluvium versions explain --round "
                         f"{status['round']['round']} -C work/quickstart/line, while a coordinator runs)")
        newest = status["version"]
        if newest > done:
            progress.end()
            for v in versions()[done + 1 : newest + 1]:
                gains = "  ".join(f"{d['domain']} {d['learnt']:+.3f}" for d in v["domains"] if d.get("learnt") is not None)
                print(f"      version {v['version']} published after {time.monotonic() - began:.0f} s: {gains}", flush=True)
            done = newest
        progress.draw(round_line(status, done, wanted, first, time.monotonic() - began))
        time.sleep(0.5)
    progress.end()
    return time.monotonic() - began


def round_line(status, done, wanted, first, seconds):
    share, phase = round_share(status["round"])
    here = done + share
    width = 24
    full = int(min(1.0, here / wanted) * width)
    eta = f"ETA {seconds / (here - first) * (wanted - here):.0f} s" if here - first > 0.15 else "ETA ..."
    return (f"[8/8] learn     [{'#' * full}{'.' * (width - full)}] version {done + 1} of {wanted}: {phase}, "
            f"{status['tokens_per_s']} tokens/s, {eta}")


def round_share(r):
    """How far the round is, 0 .. 1, and what it does now."""
    if r["phase"] == "open":
        total = sum(lease["total"] for lease in r["lease_list"])
        part = sum(lease["total"] if lease["phase"] == "accepted" else lease["done"] for lease in r["lease_list"]) / (total or 1)
        return 0.75 * part, f"training {100 * part:.0f} %"
    if r["phase"] == "aggregating":
        return 0.75, "aggregating"
    if r["phase"] == "evaluating":
        part = 1 - r["evaluations_open"] / (r["evaluations"] or 1)
        return 0.75 + 0.25 * part, f"evaluating {100 * part:.0f} %"
    return 0.0, "waiting for a round"


def generate(domain, adapter):
    args = ["generate", "--base", BASE, "--prompt", PROMPTS[domain], "--max-tokens", "32", "--temperature", "0", "--quiet"]
    return call(*args, *(["--adapter", adapter] if adapter else [])).strip()


def table(all_versions):
    """What each version scores on held-out text; the worst forgetting and the last row, as numbers."""
    last = {d["domain"]: d for d in all_versions[-1]["domains"]}
    names = list(last)
    cell = lambda v, form: f"{v:{form}}" if v is not None else " " * int(form.lstrip(">+").split(".")[0])
    print("\nLoss in nats per token on held-out text that is never trained; `general` is the anchor, never fresh text:\n")
    print(f"  {'version':<14}" + "".join(f"{n:>11}" for n in names) + f"{'forgotten':>11}{'tokens':>9}{'seconds':>9}")
    worst_of_all = 0.0
    for v in all_versions:
        if v["version"] == 0:
            print(f"  {'0 (the base)':<14}" + "".join(cell(last[n]["base_loss"], ">11.3f") for n in names))
            continue
        rows = {d["domain"]: d for d in v["domains"]}
        worst = max([0.0] + [d["forgetting"] for d in rows.values() if d["windows"]])
        worst_of_all = max(worst_of_all, worst)
        losses = "".join(cell(rows.get(n, {}).get("loss"), ">11.3f") for n in names)
        print(f"  {v['version']:<14}{losses}{worst:>11.3f}{v['tokens']:>9}{v['train_seconds']:>9.0f}")
    print(f"  {'learnt':<14}" + "".join(cell(last[n]["learnt"], ">+11.3f") for n in names))
    print("\n  learnt: base less newest, more is better (of `general`: the change on the anchor)."
          "\n  forgotten: the most any domain lost against the best version before, 0 is best."
          "\n  tokens, seconds: trained for the version, and the workers' time for it, summed.")
    return worst_of_all, last


def finish(seconds, setup_seconds):
    all_versions = versions()
    worst, last = table(all_versions)
    current = os.path.realpath(path("adapters", "current"))
    relative = os.path.relpath(current, ROOT)
    print("\nGenerated text, the same prompt before and after (greedy):")
    for domain in ("ocaml", "health"):
        for label, adapter in (("before", None), ("after", current)):
            shown = generate(domain, adapter).replace("\n", "\n            ")
            print(f"  {domain:<10}{label}\n            {shown}")
    print(f"""
The adapter lies in {relative}. To load it:
  llama.cpp            llama-cli -m {os.path.relpath(BASE, ROOT)} --lora {relative}/adapter.gguf -p "..."
  vLLM                 vllm serve HuggingFaceTB/SmolLM2-135M-Instruct --enable-lora --lora-modules quickstart={relative}
  transformers + PEFT  PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(
                           "HuggingFaceTB/SmolLM2-135M-Instruct"), "{relative}")
To go on by hand:      build/release/alluvium coordinator -C work/quickstart/line
""")
    print(json.dumps({
        "versions": all_versions[-1]["version"],
        "domains": {n: {"base_loss": d.get("base_loss"), "final_loss": d["loss"]} for n, d in last.items()},
        "worst_forgetting": worst, "tokens": sum(v["tokens"] for v in all_versions), "seconds": round(seconds + setup_seconds, 1),
        "adapters": [relative + "/adapter_model.safetensors", relative + "/adapter.gguf"]}))




def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                prog="scripts/quickstart")
    p.add_argument("--versions", type=int, default=3, metavar="N", help="go on until version N is published (default 3)")
    p.add_argument("--fresh", action="store_true", help="forget the line of an earlier run and begin anew")
    p.add_argument("--setup-seconds", type=float, default=0, help=argparse.SUPPRESS)
    a = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    if a.fresh:
        shutil.rmtree(HOME, ignore_errors=True)
    processes = Processes()
    try:
        make_line()
        start_all(processes)
        push_all()
        seconds = learn(processes, a.versions)
        newest = versions()[-1]["version"]
        wait_until(processes, 60, "the subscriber to have the newest version",
                   lambda: os.path.realpath(path("adapters", "current")).endswith(f"-v{newest}"))
        finish(seconds, a.setup_seconds)
    except KeyboardInterrupt:
        print("\nstopping; run scripts/quickstart again to go on from here", file=sys.stderr)
        return 130
    except (Failed, OSError) as e:
        print(f"\nquickstart: {e}", file=sys.stderr)
        return 1
    finally:
        processes.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
