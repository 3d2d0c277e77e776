#!/usr/bin/env python3
"""`alluvium train` with its objectives dpo and kl, on files good and bad, and with some of the modules:  test_objectives.py ALLUVIUM TOY_BASE_MAKER"""
import json
import math
import os
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "support"))
from expectations import end, expect  # noqa: E402

ALLUVIUM, TOY = sys.argv[1:3]


def tensors(path, **named):
    """A safetensors file: name=(dtype, shape, bytes)."""
    head, data = {}, b""
    for name, (dtype, shape, payload) in named.items():
        head[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(payload)]}
        data += payload
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    return path


def lines(path, rows):
    with open(path, "w", encoding="utf-8") as f:
        f.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path


def train(objective, data, *more):
    """(exit status, steps, standard error)"""
    run = subprocess.run([ALLUVIUM, "train", "--base", base, "--objective", objective, "--data", data, "--out", os.path.join(home, "out"), "--json",
                          "--seq", "32", "--rank", "4", "--lr", "0.01", "--warmup", "1", "--threads", "1", "--backend", "blas", *more],
                         capture_output=True, text=True, timeout=60)
    events = [json.loads(row) for row in run.stdout.splitlines()]
    return run.returncode, [e for e in events if e.get("event") == "step"], run.stderr


def refused(what, code, stderr, steps, *words):
    expect(code not in (0, -6, -11) and not steps and all(w in stderr for w in words), f"{what} to be refused with {words}: exit {code}, {stderr}")


def test_pairs():
    pair = {"prompt": "what is it", "chosen": " a river", "rejected": " a stone"}
    chat = {**pair, "prompt": [{"role": "user", "content": "what is it"}]}
    good = lines(os.path.join(home, "pairs.jsonl"), [{**pair, "prompt": f"what is {c}"} for c in "abcdefgh"])
    code, steps, err = train("dpo", good, "--steps", "30")
    expect(code == 0 and len(steps) == 30, f"pairs to be learnt: exit {code}, {err}")
    expect(abs(steps[0]["loss"] - math.log(2)) < 1e-6, f"the first loss to be log 2, the reference being the start: {steps[0]}")
    expect(steps[-1]["loss"] < 0.5 * steps[0]["loss"] and steps[-1]["preferred"] == 1, f"the chosen answers to be preferred: {steps[-1]}")

    given = lines(os.path.join(home, "given.jsonl"), [{**pair, "chosen_logprob": -5, "rejected_logprob": -90}])
    code, steps, err = train("dpo", given, "--steps", "1")
    expect(code == 0 and steps[0]["loss"] > 2, f"a reference that is given to be used: exit {code}, {steps}, {err}")

    expect(steps[0]["tokens"] % 16 == 0, f"the 8 characters of each answer alone to be targets: {steps}")

    bad = ["{", "[]", {**pair, "prompt": 7}, {**pair, "prompt": ""}, {**pair, "chosen": ""}, {"prompt": "x", "chosen": "y"}, {**pair, "chosen_logprob": -1},
           {**pair, "chosen_logprob": 1, "rejected_logprob": -1}, {**pair, "chosen": "long " * 40}, '{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}',
           {**pair, "prompt": [{"role": "nobody"}]}, {**pair, "prompt": ["x"]}]
    path = lines(os.path.join(home, "bad.jsonl"), bad + [pair])
    code, steps, err = train("dpo", path, "--steps", "1")
    expect(code == 0 and len(steps) == 1, f"the one good line to be learnt: exit {code}, {err}")
    for i in range(len(bad)):
        expect(f"{path}:{i + 1}: refused: " in err, f"line {i + 1}, {bad[i]}, to be named: {err}")
    expect(f"{path}:{len(bad) + 1}:" not in err, f"the good line not to be refused: {err}")
    refused("a file without a good line", *train_parts("dpo", lines(os.path.join(home, "none.jsonl"), bad)), "nothing to learn from")
    refused("a file that is not there", *train_parts("dpo", os.path.join(home, "nowhere.jsonl")), "nowhere.jsonl")
    refused("a chat on a base without a template", *train_parts("dpo", lines(os.path.join(home, "chat.jsonl"), [chat])), "chat.jsonl:1: refused", "template")


def train_parts(objective, data, *more):
    code, steps, err = train(objective, data, "--steps", "1", *more)
    return code, err, steps


def test_teacher():
    vocabulary = json.load(open(os.path.join(base, "config.json"), encoding="utf-8"))["vocab_size"]
    n = 9
    ids = struct.pack(f"<{n}i", *(i % 5 + 1 for i in range(n)))
    flat = struct.pack(f"<{n * vocabulary}f", *(3.0 * (v == (m * 7) % vocabulary) for m in range(n) for v in range(vocabulary)))
    path = os.path.join(home, "teacher.safetensors")
    code, steps, err = train("kl", tensors(path, ids__a=("I32", [n], ids), logits__a=("F32", [n, vocabulary], flat)), "--steps", "40")
    expect(code == 0 and len(steps) == 40, f"a teacher to be learnt from: exit {code}, {err}")
    expect(0 <= steps[-1]["loss"] < 0.7 * steps[0]["loss"], f"the teacher's predictions to be approached: {steps[0]}, {steps[-1]}")
    wide = struct.pack(f"<{n}q", *(i % 5 + 1 for i in range(n)))
    code, again, err = train("kl", tensors(path, ids__a=("I64", [n], wide), logits__a=("F32", [n - 1, vocabulary], flat[:(n - 1) * vocabulary * 4])), "--steps", "1")
    expect(code == 0 and again[0]["loss"] == steps[0]["loss"], f"wide ids and a row less to be the same: {again}, {steps[0]}, {err}")

    outside = struct.pack(f"<{n}i", *([vocabulary] * n))
    infinite = struct.pack("<f", math.inf) + flat[4:]
    for what, parts, words in (
            ("ids without logits", {"ids__a": ("I32", [n], ids)}, ("logits.a",)),
            ("logits of another vocabulary", {"ids__a": ("I32", [n], ids), "logits__a": ("F32", [n, vocabulary - 1], flat[:n * (vocabulary - 1) * 4])}, ("logits.a", str(vocabulary))),
            ("too few rows", {"ids__a": ("I32", [n], ids), "logits__a": ("F32", [n - 2, vocabulary], flat[:(n - 2) * vocabulary * 4])}, ("logits.a", f"{n} rows")),
            ("ids as floats", {"ids__a": ("F32", [n], ids), "logits__a": ("F32", [n, vocabulary], flat)}, ("ids.a", "I32")),
            ("ids outside the vocabulary", {"ids__a": ("I32", [n], outside), "logits__a": ("F32", [n, vocabulary], flat)}, ("ids.a", "vocabulary")),
            ("one id", {"ids__a": ("I32", [1], ids[:4]), "logits__a": ("F32", [1, vocabulary], flat[:vocabulary * 4])}, ("ids.a", "2 to")),
            ("logits that do not lie on a multiple of four", {"x": ("U8", [1], b"x"), "ids__a": ("I32", [n], ids), "logits__a": ("F32", [n, vocabulary], flat)}, ("logits.a",)),
            ("no ids at all", {"logits__a": ("F32", [n, vocabulary], flat)}, ("nothing to learn from",)),
            ("a logit that is not finite", {"ids__a": ("I32", [n], ids), "logits__a": ("F32", [n, vocabulary], infinite)}, ("finite",))):
        refused(what, *train_parts("kl", tensors(path, **parts)), *words)
    with open(path, "wb") as f:
        f.write(b"\xff" * 100)
    refused("what is no safetensors file", *train_parts("kl", path), "teacher.safetensors")


def test_modules():
    layers = json.load(open(os.path.join(base, "config.json"), encoding="utf-8"))["num_hidden_layers"]
    text = lines(os.path.join(home, "text.jsonl"), [{"id": c, "text": f"{c} river is no stone, " * 4} for c in "abcd"])
    code, steps, err = train("lm", text, "--steps", "20", "--target-modules", "v_proj,down_proj")
    expect(code == 0 and steps[-1]["loss"] < 0.9 * steps[0]["loss"], f"two modules to learn: exit {code}, {steps[-1:]}, {err}")
    config = json.load(open(os.path.join(home, "out", "adapter_config.json"), encoding="utf-8"))
    expect(config["target_modules"] == ["v_proj", "down_proj"], f"PEFT to be told which: {config}")
    with open(os.path.join(home, "out", "adapter_model.safetensors"), "rb") as f:
        names = [n for n in json.loads(f.read(struct.unpack("<Q", f.read(8))[0])) if n != "__metadata__"]
    expect(names and all(".v_proj." in n or ".down_proj." in n for n in names), f"no others to be written: {names}")
    code, again, err = train("lm", text, "--steps", "1", "--adapter", os.path.join(home, "out"))
    expect(code == 0 and again[0]["loss"] < 0.9 * steps[0]["loss"], f"such an adapter to be gone on from: exit {code}, {again}, {err}")
    code, steps, err = train("lm", text, "--steps", "20", "--first-layer", "1")
    config = json.load(open(os.path.join(home, "out", "adapter_config.json"), encoding="utf-8"))
    expect(code == 0 and steps[-1]["loss"] < 0.9 * steps[0]["loss"], f"the upper layers to learn: exit {code}, {steps[-1:]}, {err}")
    expect(config["layers_to_transform"] == list(range(1, layers)), f"PEFT to be told which layers: {config}")
    code, again, err = train("lm", text, "--steps", "1", "--adapter", os.path.join(home, "out"))
    expect(code == 0 and again[0]["loss"] < 0.9 * steps[0]["loss"], f"an adapter of the upper layers to be gone on from: exit {code}, {again}, {err}")
    refused("a first layer that is not there", *train_parts("lm", text, "--first-layer", str(layers)), "first layer")
    refused("other layers than the adapter's", *train_parts("lm", text, "--adapter", os.path.join(home, "out"), "--first-layer", "1"),
            "--first-layer")
    path = os.path.join(home, "out", "adapter_config.json")
    for field, value in (("use_rslora", True), ("use_dora", True), ("alpha_pattern", {"q_proj": 1}), ("peft_type", "IA3"), ("bias", "all"),
                         ("layers_to_transform", [0]), ("layers_to_transform", ["x"] * (layers - 1)), ("layers_to_transform", 1)):
        with open(path, "w", encoding="utf-8") as f:
            json.dump({**config, field: value}, f)
        refused(f"{field} {value}", *train_parts("lm", text, "--adapter", os.path.join(home, "out")), field)
    code, _, err = train("lm", text, "--target-modules", "q" + chr(0x6f22) * 20)
    expect(code == 2 and json.loads(err.splitlines()[-1])["error"]["exit"] == 2, f"an error to be told whatever its characters: {err}")
    for bad in ("", "v_proj,", "v", "v_proj,q_proj2"):
        refused(f"modules {bad!r}", *train_parts("lm", text, "--target-modules", bad), "none of q_proj")


with tempfile.TemporaryDirectory(prefix="alluvium-objectives-") as home:
    base = os.path.join(home, "base")
    subprocess.run([TOY, base], check=True)
    test_pairs()
    test_teacher()
    test_modules()
end()
