#!/usr/bin/env python3
"""Training speed over the length of a sample, the micro-batch, the rank and the threads: each point and a point of reference stay loaded
and take steps in turn, so that a busy machine slows both.

usage: curves.py BASE.gguf [--ops blas|dnnl|bf16] [--threads 2] [--steps 3] [--only length|batch|rank|threads] [--json FILE]

Prints a table each, ready for docs/performance.md: tokens/s, its ratio to the reference (4 samples of 512 rows, rank 16; for lengths 16 of
512, so that every point has 8,192 rows) and peak memory. For lengths also the ratio that the FLOP of a token alone would give
(bench/train.c's count, of SmolLM2-135M). Needs `scripts/build release bench_train`.
"""
import argparse
import json
import os
import statistics

from turns import Runner

HERE = os.path.dirname(os.path.abspath(__file__))
BENCH = os.path.join(HERE, "..", "build", "release", "bench", "bench_train")
POINT = {"samples": 4, "seq": 512, "rank": 16}
ROWS = 8192  # of every point of the lengths


def gflop_per_token(seq, rank):
    layers, model, ff, heads, kv, vocab = 30, 576, 1536, 576, 192, 49152
    sizes = [(model, heads), (model, kv), (model, kv), (heads, model), (model, ff), (model, ff), (ff, model)]
    linear = layers * sum(i * o for i, o in sizes)
    lora = layers * rank * sum(i + o for i, o in sizes)
    return (4 * linear + 6 * lora + 4 * vocab * model + 7 * layers * heads * seq) / 1e9


def start(a, point):
    return Runner([BENCH, "--base", a.base, "--ops", a.ops, "--turns", *(str(x) for k, v in point.items() for x in ("--" + k, v))])


def measure(a, point, reference, other):
    """`other` has `reference` loaded and has taken a step."""
    one = start(a, point)
    one.step()
    for _ in range(a.steps):
        one.step(), other.step()
    rows = [p["samples"] * p["seq"] for p in (point, reference)]
    ratio = statistics.median((rows[0] / x) / (rows[1] / y) for x, y in zip(one.wall[1:], other.wall[-a.steps:]))
    rate = rows[0] / statistics.median(one.wall[1:])
    return {**point, "tokens_per_s": rate, "ratio": ratio, "peak_mb": one.end() / 1e6}


def curve(a, name, points, reference):
    print(f"\n| {name} | tokens/s | to the reference |{' by FLOP |' if name == 'length' else ''} peak, MB |")
    print("|---|---|---|---|" + ("---|" if name == "length" else ""))
    results, other = [], start(a, reference)
    other.step()
    for label, point in points:
        r = {**measure(a, point, reference, other), "curve": name, "label": label}
        flop = ""
        if name == "length":
            r["by_flop"] = gflop_per_token(reference["seq"], POINT["rank"]) / gflop_per_token(point["seq"], POINT["rank"])
            flop = f" {r['by_flop']:.2f} |"
        print(f"| {label} | {r['tokens_per_s']:,.0f} | {r['ratio']:.2f} |{flop} {r['peak_mb']:,.0f} |", flush=True)
        results.append(r)
    other.end()
    return results


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base")
    p.add_argument("--ops", default="blas")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--only", choices=["length", "batch", "rank", "threads"])
    p.add_argument("--json")
    a = p.parse_args()
    reference = {**POINT, "threads": a.threads}
    lengths = [128 << i for i in range(7)]
    curves = {
        "length": ([(f"{n:,}", {**reference, "seq": n, "samples": ROWS // n}) for n in lengths],
                   {**reference, "samples": ROWS // POINT["seq"]}),
        "batch": ([(f"{n} x 512", {**reference, "samples": n}) for n in (1, 2, 4, 8, 16)], reference),
        "rank": ([(str(n), {**reference, "rank": n}) for n in (4, 8, 16, 32, 64)], reference),
        "threads": ([(str(n), {**reference, "threads": n}) for n in range(1, a.threads + 1)], reference),
    }
    results = []
    for name, (points, of) in curves.items():
        if a.only in (None, name):
            results += curve(a, name, points, of)
    if a.json:
        with open(a.json, "w") as f:
            json.dump({"ops": a.ops, "points": results}, f)


main()
