#!/usr/bin/env python3
"""Text to tokens on one thread: alluvium beside Hugging Face tokenizers on the same files, alternating; the ids must be equal.

usage: bench/peers/tokenizer.py BASE.gguf TEXT.jsonl ...      (needs: pip install tokenizers gguf; and bench_tokenize built)

The texts of all records of each file, joined by line ends; and a file of random Unicode, seeded. The reference is built from the GGUF's own vocabulary and merges,
with the digits split off as llama.cpp's "smollm" does; transformers' own reading of a GGUF drops that step. A record at a time
(encode) and all records in one call (encode_batch, one thread) are both timed; the faster counts.
"""
import array
import json
import os
import random
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
import gguf  # noqa: E402
import tokenizers  # noqa: E402
from tokenizers import models, pre_tokenizers  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ROUNDS = 3


def reference(path):
    fields = gguf.GGUFReader(path).fields

    def strings(key):
        f = fields[key]
        return [bytes(f.parts[i]).decode() for i in f.data]

    vocab = {t: i for i, t in enumerate(strings("tokenizer.ggml.tokens"))}
    merges = [tuple(m.split(" ")) for m in strings("tokenizer.ggml.merges")]
    t = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return t


def random_unicode():
    """Words of one script each, letters, digits, marks, spaces and controls of every plane; no surrogates."""
    rng = random.Random(1)
    blocks = [(0x20, 0x7f), (0, 0x20), (0x80, 0x250), (0x370, 0x600), (0x600, 0x1000), (0x2000, 0x2c00), (0x3040, 0xa000),
              (0xac00, 0xd7a4), (0xe000, 0x10000), (0x10000, 0x20000), (0x20000, 0x110000)]
    return ["".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(1, 12))) for _ in range(20000)]


def main():
    base, files = sys.argv[1], sys.argv[2:]
    theirs = reference(base)
    print(f"tokenizers {tokenizers.__version__}")
    total_ours = total_theirs = 0.0
    for path in files + ["random unicode"]:
        if path in files:
            with open(path) as f:
                records = [json.loads(line)["text"] for line in f]
        else:
            records = random_unicode()
        text = "\n".join(records)
        with tempfile.TemporaryDirectory() as d:
            plain, out, ids = (os.path.join(d, x) for x in ("text", "json", "ids"))
            with open(plain, "w", newline="") as f:
                f.write(text)
            best = {}
            for _ in range(ROUNDS):
                subprocess.run([f"{ROOT}/build/release/bench/bench_tokenize", "--base", base, "--rounds", "1", "--json", out,
                                "--ids", ids, plain], check=True, stdout=subprocess.DEVNULL)
                r = json.load(open(out))
                seconds = r["bytes"] / r["mb_per_s"] / 1e6
                best["ours"] = min(best.get("ours", 1e9), seconds)
                for name, call in (("encode", lambda: [theirs.encode(x, add_special_tokens=False) for x in records]),
                                   ("batch", lambda: theirs.encode_batch(records, add_special_tokens=False))):
                    begin = time.perf_counter()
                    call()
                    best[name] = min(best.get(name, 1e9), time.perf_counter() - begin)
            ours = array.array("I", open(ids, "rb").read())
        expected = theirs.encode(text, add_special_tokens=False).ids
        if ours.tolist() != expected:
            at = next((i for i, (a, b) in enumerate(zip(ours, expected)) if a != b), min(len(ours), len(expected)))
            sys.exit(f"{path}: token {at} differs: {ours[at:at + 4].tolist()} here, {expected[at:at + 4]} there")
        other = min(best["encode"], best["batch"])
        total_ours += best["ours"]
        total_theirs += other
        mb = len(text.encode()) / 1e6
        print(f"{os.path.basename(path):20} {mb:5.1f} MB  ours {mb / best['ours']:6.1f} MB/s  theirs {mb / other:6.1f} MB/s  "
              f"ratio {other / best['ours']:.2f}")
    print(f"all files: ratio {total_theirs / total_ours:.2f}")


if __name__ == "__main__":
    main()
