#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/smollm2.json and tests/golden/base/smollm2.json: what the reference libraries say.

usage: golden_tokenizer.py BASE.gguf      (pip install tokenizers==0.23.3 gguf==0.19.0 jinja2)

Vocabulary and merges are SmolLM2's; the pipelines around them are those of four model families, so that each scanner is
tested with one vocabulary:
  smollm  Digits(individual) + ByteLevel     gpt2  ByteLevel
  llama3  its Split + ByteLevel, ignore_merges     qwen2  NFC, its Split + ByteLevel
`check` is a fixed set, `random` 2,000 strings; `sweep` is every code point of five planes under a vocabulary made so that a
piece's border shows in the ids. Of the last two only hashes of the ids are kept: the test makes the same strings again.
"""
import hashlib
import json
import os
import struct
import sys

import jinja2
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers as pre

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "golden")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
CHECK = [
    "", " ", "  ", "\n", "a", "Hello world", " Hello  world ", "The quick brown fox jumps over the lazy dog.",
    "don't I'll you've we're he'd I'm it's 'twas DON'T I'LL O'Reilly 's 'S 'ſ '' '", "I'M 'RE 'Ve 'LL 'lL'd",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x1F 1e-9", " 1 22  333   4444\n5", "Ⅻ ½ ² ³x a² ٣٤ १२३ 〇一二 ①② ¼cup",
    " Ⅻ ½ ²", "𝟘𝟙𝟚 ௧ ৪ 𐄇", "x=1;y=22;z=333", "\t\tif (x) {\n\t\t\treturn 0;\n\t\t}\n", "   leading", "trailing   ",
    "a \n b\n\n\nc  \n  d\r\n\r\ne\tf", " \n ", "\n\n", " \r\n \n x", "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u1680g",
    "zero\u200bwidth\u200djoiner\ufefftext", "naïve café Ωμέγα Привет мир", "İstanbul ıçğşöü ß ẞ ǅ ʰ ªº",
    "日本語のテキスト、漢字とかな。", "中文没有空格的句子很长", "한국어 띄어쓰기", "ภาษาไทยไม่มีช่องว่าง", "हिन्दी में लिखा", "עברית وعربي",
    "👍🏽 👨‍👩‍👧‍👦 🇫🇷 🏳️‍🌈 😀😀", "e\u0301 a\u0308\u0323 n\u0303o \u0301x 1\u0301", "Å Å ﬁ ½ ﷺ", "\u1100\u1161\u11a8 각",
    "def f(x):\n    return x**2  # square\n", "let rec f = function [] -> 0 | x :: xs -> x + f xs;;",
    "#include <stdio.h>\nint main(void) { printf(\"%d\\n\", 42); }", "SELECT * FROM t WHERE a='b' AND c<>1;--",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|im_end|>x<file_sep>", "https://example.org/a?b=c&d=%20#e",
    "!!!???...---===", "=" * 100, " " * 100, "a" * 200, "ab" * 100, "\n" * 60 + "x", "$100 €50 £20 ¥5 50% @user #tag",
    "\x00\x01\x02\x03\x07\x08\x0b\x0c\x0e\x1b\x1f\x7f", "a\x04b\x06c\x13d\x14e\x16f\x1dg", "\x16\x16the\x04re", "th\x1de th\x16e",
    "\u0378\U0001fbff\U000e0041\U0010ffff\ufffd\uffff", "\U00010d41\U00010d42 \U00011de0\U00011de1 a\U00016ff4b ᲊ\u1c89",
    "camelCaseWord snake_case_word kebab-case SCREAMING_CASE", "Mr. O’Neill said “hi” — then… left", "CO₂ H₂O x² m³ 10⁶",
    "longword" * 40, "日本" * 60, "it's\n's\n 's", "a'b''c'''d", " 'tis", "123abc456", "abc 123 def456ghi", "1st 2nd 3rd",
]
CHATS = [
    [["user", "Hi"]],
    [["system", "Be brief."], ["user", "What is 2+2?"], ["assistant", "4"]],
    [["user", "a\n\nb "], ["assistant", "\n  starts with white space\n"], ["user", ""], ["assistant", "日本 👍"]],
    [["assistant", "first"], ["system", "late"], ["user", " x"]],
]


class Rng:
    """xoshiro256** seeded by splitmix64, as base/hash.c."""

    M = (1 << 64) - 1

    def __init__(self, seed):
        self.s = []
        for _ in range(4):
            seed = (seed + 0x9E3779B97F4A7C15) & self.M
            z = seed
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & self.M
            z = (z ^ z >> 27) * 0x94D049BB133111EB & self.M
            self.s.append(z ^ z >> 31)

    def u64(self):
        def rotl(x, k):
            return (x << k | x >> (64 - k)) & self.M
        s = self.s
        result = rotl(s[1] * 5 & self.M, 7) * 9 & self.M
        t = s[1] << 17 & self.M
        s[2] ^= s[0]
        s[3] ^= s[1]
        s[1] ^= s[2]
        s[0] ^= s[3]
        s[2] ^= t
        s[3] = rotl(s[3], 45)
        return result

    def below(self, n):
        limit = self.M - self.M % n
        while True:
            v = self.u64()
            if v < limit:
                return v % n


# The kinds of random character: (first, count). The test has the same table.
RANGES = [(0x61, 26), (0x61, 26), (0x20, 95), (0x20, 1), (0x09, 5), (0x30, 10), (0xA0, 0x160), (0x300, 0x70), (0x370, 0x400),
          (0x2000, 0x70), (0x2070, 0x120), (0x4E00, 0x1000), (0xAC00, 0x1000), (0x1F300, 0x300), (0x27, 1)]


def random_string(rng):
    text = []
    for _ in range(1 + rng.below(40)):
        k = rng.below(len(RANGES) + 1)
        if k == len(RANGES):
            c = rng.below(0x110000 - 0x800)
            text.append(chr(c if c < 0xD800 else c + 0x800))
        else:
            text.append(chr(RANGES[k][0] + rng.below(RANGES[k][1])))
    return "".join(text)


# Bytes, and the merges of a letter, a digit, a sign and a space with every first byte of a character beyond ASCII: whether a
# character joins what is before it decides the ids.
SWEEP_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x144)]
SWEEP_MERGES = [(a, chr(b)) for a in "a1!\u0120" for b in range(0xC2, 0xF5)]


def sweep_string(block):  # 4,096 code points
    return "".join(f"a{chr(c)} {chr(c)}1{chr(c)}!{chr(c)}" for c in range(block * 4096, block * 4096 + 4096)
                   if not 0xD800 <= c < 0xE000)


def hash_ids(lists):
    h = hashlib.sha256()
    for ids in lists:
        h.update(struct.pack("<I", len(ids)) + np.asarray(ids, dtype="<u4").tobytes())
    return h.hexdigest()[:16]


def tokenizers(vocab, merges):
    def make(pre_tokenizer, **model):
        t = Tokenizer(models.BPE(vocab, merges, **model))
        t.pre_tokenizer = pre_tokenizer
        return t

    def split(regex):
        return pre.Sequence([pre.Split(Regex(regex), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    level = pre.ByteLevel(add_prefix_space=False, use_regex=True)
    qwen2 = make(split(LLAMA3.replace("{1,3}", "")))
    qwen2.normalizer = normalizers.NFC()
    return {"smollm": make(pre.Sequence([pre.Digits(individual_digits=True), level])), "gpt2": make(level),
            "llama3": make(split(LLAMA3), ignore_merges=True), "qwen2": qwen2}


def base_rows(reader):
    """SHA-256 of each kind of tensor as f32, in Hugging Face order: q and k un-permuted."""
    heads = {"attn_q": 9, "attn_k": 3}
    out = {}
    for t in reader.tensors:
        if t.name.startswith("blk.") and t.name.split(".")[1] not in ("0", "29"):
            continue
        x = dequantize(t.data, t.tensor_type).astype("<f4")
        n = heads.get(t.name.split(".")[-2])
        if n:
            x = x.reshape(n, x.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
        out[t.name] = hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest()
    return out


def write(name, value):
    path = os.path.join(GOLDEN, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, separators=(",", ":"))
        f.write("\n")
    print(path, os.path.getsize(path), "bytes")


def main():
    reader = GGUFReader(sys.argv[1])
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    families = tokenizers({t: i for i, t in enumerate(tokens)}, merges)
    rng = Rng(20240607)
    strings = [random_string(rng) for _ in range(2000)]
    golden = {"check": [{"text": s, **{k: t.encode(s).ids for k, t in families.items()}} for s in CHECK], "random": {},
              "sweep": {}, "chats": []}
    for k, t in families.items():
        ids = [e.ids for e in t.encode_batch(strings)]
        golden["random"][k] = [hash_ids(ids[i:i + 100]) for i in range(0, 2000, 100)]
    names = [chr(b) for b in SWEEP_BYTES] + [a + b for a, b in SWEEP_MERGES]
    for k, t in tokenizers({t: i for i, t in enumerate(names)}, SWEEP_MERGES).items():
        blocks = [sweep_string(b) for p in (0, 1, 2, 3, 14) for b in range(16 * p, 16 * p + 16)]
        golden["sweep"][k] = [hash_ids([t.encode(s).ids]) for s in blocks]
    chat = families["smollm"]
    chat.add_special_tokens([AddedToken(t, special=True) for t, k in zip(tokens, kinds) if k == 3])
    template = jinja2.Environment().from_string(reader.fields["tokenizer.chat_template"].contents())
    for messages in CHATS:
        text = template.render(messages=[{"role": r, "content": c} for r, c in messages], add_generation_prompt=True)
        golden["chats"].append({"messages": messages, "ids": chat.encode(text).ids})
    write("tokenizer/smollm2.json", golden)
    write("base/smollm2.json", base_rows(reader))


main()
