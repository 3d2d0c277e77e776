#!/usr/bin/env python3
"""One trainer alone on a core, then two at once on a core each: tokens per second together over alone.

usage: bench/two_workers.py BENCH_TRAIN [--json FILE]      (BENCH_TRAIN: build/release/bench/bench_train)
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile


def trainers(bench, cores, directory):
    running = []
    for core in cores:
        out = os.path.join(directory, f"{len(cores)}-{core}.json")
        argv = ["taskset", "-c", str(core), bench, "--threads", "1", "--samples", "1", "--seq", "512", "--steps", "4", "--json", out]
        running.append((out, subprocess.Popen(argv, stdout=subprocess.DEVNULL)))
    for _, p in running:
        if p.wait():
            sys.exit(f"bench_train ended with {p.returncode}")
    return [json.load(open(out))["tokens_per_s"] for out, _ in running]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bench_train")
    p.add_argument("--json")
    a = p.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("two cores are needed")
    with tempfile.TemporaryDirectory() as directory:
        alone, both = trainers(a.bench_train, cores[:1], directory)[0], trainers(a.bench_train, cores, directory)
    result = {"alone_tokens_per_s": alone, "together_tokens_per_s": sum(both), "ratio": sum(both) / alone}
    print(f"one: {alone:.1f} tokens/s   two: {both[0]:.1f} + {both[1]:.1f} = {sum(both):.1f}   ratio {result['ratio']:.2f}")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f)
    return 0


if __name__ == "__main__":
    sys.exit(main())
