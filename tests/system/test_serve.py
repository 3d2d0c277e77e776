#!/usr/bin/env python3
"""Versions of a real line reach model servers: vLLM's calls, a hook that fails first, the hook for llama-server, and what the
coordinator says of them.

usage: test_serve.py ALLUVIUM

The line learns on a toy base; the servers are tests/client/fake_vllm.py and fake_llama_server.py, which answer as vLLM and
llama-server document. Waits are for events.
"""
import json
import os
import signal
import subprocess
import sys
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "support"))
import toy_line  # noqa: E402
from expectations import end, expect  # noqa: E402


class FakeServer:
    def __init__(self):
        self.p = subprocess.Popen([sys.executable, os.path.join(HERE, "..", "client", "fake_vllm.py"), "--base", "/models/toy"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.p.stdout.readline())}"

    def adapters(self):
        with urllib.request.urlopen(self.url + "/v1/models", timeout=20) as answer:
            return {m["id"]: m["root"] for m in json.load(answer)["data"] if m["parent"]}

    def tell(self, **what):
        urllib.request.urlopen(self.url + "/fake", data=json.dumps(what).encode(), timeout=20).close()

    def stop(self):
        self.p.stdin.close()
        self.p.wait(20)


def serving(line, target):
    return next((m for m in line.ask("status")["members"] if m.get("target") == target), {})


def answers(address):
    try:
        urllib.request.urlopen(address + "/health", timeout=20).close()
        return True
    except OSError:
        return False


def killed_start(line, hook, state, env):
    """A hook that is killed while its server starts leaves one that the next run ends; one that is told to stop leaves none."""
    def started():
        try:
            return int(open(os.path.join(state, "starting")).read())
        except (OSError, ValueError):
            return None

    def runs(pid):
        try:
            return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    for kill, left in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        slow = subprocess.Popen([hook], env={**env, "FAKE_LLAMA_DELAY": "300"}, stderr=subprocess.DEVNULL)
        line.wait("a server that is slow to start", lambda: started() and runs(started()))
        orphan = started()
        slow.send_signal(kill)
        slow.wait()
        if left:
            expect(runs(orphan), "the killed hook's server to be there still, else this tests nothing")
        else:
            line.wait("its server to end", lambda: not runs(orphan))
    again = subprocess.run([hook], env=env, capture_output=True, text=True, timeout=120)
    expect(again.returncode == 0, f"the next run to bring its own server up: {again.stderr}")
    expect(not runs(orphan) and runs(int(open(os.path.join(state, "pid")).read())), "the one left behind to be ended, the one in use to be ours")


def main():
    fake = FakeServer()
    with toy_line.Line(sys.argv[1], "serve", "--target-modules", "q_proj,v_proj,down_proj", "--first-layer", "1") as line:
        hook, gate, heard = line.path("hook.sh"), line.path("gate"), line.path("heard")
        with open(hook, "w") as f:  # fails until the gate is there; then says what it was told
            f.write(f'#!/bin/sh\n[ -e {gate} ] || {{ echo "no gate yet" >&2; exit 9; }}\n'
                    f'[ -f "$ALLUVIUM_GGUF" ] && [ -f "$ALLUVIUM_PEFT" ] && echo "$ALLUVIUM_LINE $ALLUVIUM_VERSION" >>{heard}\n')
        os.chmod(hook, 0o755)
        worker = line.worker()
        line.push()
        line.wait("version 1", line.version)
        keeper = line.start("keeper", "subscribe", "--join", line.join("subscriber"), "--dir", line.path("kept"), "--form", "peft",
                            "--drain", "1", "--serve", f"vllm={fake.url}")
        state = line.path("llama")
        llama_hook = os.path.join(HERE, "..", "..", "deploy", "serve", "llama-server.sh")
        llama = line.start("llama", "subscribe", "--join", line.join("subscriber"), "--dir", line.path("gguf"), "--form", "gguf",
                           "--hook", llama_hook, env={**os.environ, "LLAMA_BASE": line.base, "LLAMA_STATE": state,
                                                      "LLAMA_PORT": str(line.port + 5),
                                                      "LLAMA_SERVER": os.path.join(HERE, "..", "client", "fake_llama_server.py")})
        hooked = line.start("hooked", "subscribe", "--join", line.join("subscriber"), "--dir", line.path("hooked"), "--hook", hook)

        def has(version):
            name = f"serve-v{version}"
            return fake.adapters() == {name: os.path.join(os.path.realpath(line.path("kept")), name)}

        def llama_serves(version):
            """The address of the server in use, when it says that it has this version's file."""
            try:
                address = open(os.path.join(state, "upstream")).read().strip()
                with urllib.request.urlopen(address + "/lora-adapters", timeout=20) as answer:
                    return json.load(answer)[0]["path"].endswith(f"serve-v{version}/adapter.gguf") and address
            except OSError:
                return None

        line.wait("version 1 in the server", lambda: has(line.version()))
        kept = line.path("kept", f"serve-v{line.version()}")
        config = json.load(open(os.path.join(kept, "adapter_config.json")))
        expect(config["base_model_name_or_path"] == "/models/toy", f"the base's name to be the server's: {config}")
        expect(config["target_modules"] == ["q_proj", "v_proj", "down_proj"], f"the line's modules, and no others: {config}")
        note = line.path("note.txt")
        with open(note, "w") as f:
            f.write("a river is no stone " * 8)
        score = json.loads(line.run("eval", "--base", line.base, "--adapter", kept, note, "--json", "--backend", "ref", "--seq", "32"))
        expect(score[0]["nll_per_token"] > 0, f"a version of the upper layers to be read back: {score}")
        line.wait("the hook's failure to be reported", lambda: "status 9" in serving(line, hook).get("error", ""))
        expect(os.path.basename(os.path.realpath(line.path("hooked", "current"))) == f"serve-v{line.version()}",
               "a failing hook to leave the version in place")
        open(gate, "w").close()
        line.wait("the hook to succeed", lambda: serving(line, hook).get("serving") == line.version() and not serving(line, hook)["error"])
        expect(open(heard).read().split() == ["serve", str(line.version())], f"the hook to be told once it works: {open(heard).read()}")

        line.wait("it in llama-server", lambda: llama_serves(line.version()))
        first = llama_serves(line.version())
        fake.tell(fail=503, times=2, path="/v1/load_lora_adapter")
        before = line.version()
        line.push()
        line.wait("a further version", lambda: line.version() > before)
        line.wait("it in the server, and nothing older", lambda: has(line.version()))
        line.wait("it in a second llama-server", lambda: llama_serves(line.version()))
        second = llama_serves(line.version())
        line.wait("the first to end", lambda: not answers(first))
        with open(line.path("broken.gguf"), "w") as f:
            f.write("no GGUF")
        by_hand = {**os.environ, "LLAMA_BASE": line.base, "LLAMA_STATE": state, "LLAMA_PORT": str(line.port + 5), "ALLUVIUM_VERSION": "99",
                   "ALLUVIUM_GGUF": line.path("broken.gguf"), "LLAMA_SERVER": os.path.join(HERE, "..", "client", "fake_llama_server.py")}
        broken = subprocess.run([llama_hook], capture_output=True, text=True, timeout=120, env=by_hand)
        expect(broken.returncode == 1 and "failed to apply lora adapter" in broken.stderr, f"a broken file to fail: {broken}")
        expect(llama_serves(line.version()) == second, "the server before to go on")
        fake.tell(forget=True)
        line.wait("it in a server that was started again", lambda: has(line.version()))
        line.wait("the report", lambda: serving(line, fake.url).get("serving") == line.version() and not serving(line, fake.url)["error"])
        killed_start(line, llama_hook, state, {**by_hand, "ALLUVIUM_GGUF": os.path.join(os.path.realpath(line.path("gguf", "current")), "adapter.gguf")})
        os.kill(int(open(os.path.join(state, "pid")).read()), signal.SIGTERM)
        for p in (keeper, hooked, llama, worker, line.coordinator):
            expect(line.stop(p), "a clean end after TERM")
        expect(len(fake.adapters()) == 1, "a subscriber that ends to leave its server as it is")
    fake.stop()


main()
end()
