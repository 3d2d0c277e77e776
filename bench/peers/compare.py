#!/usr/bin/env python3
"""Our training (or scoring) beside PyTorch + PEFT on the same tokens: both stay loaded and take steps in turn.

usage: compare.py train|eval BASE.gguf [--tcmalloc] [--steps 5] [--samples 4] [--seq 512] [--rank 16] [--threads 2]
                  [--dtype f32|bf16] [--checkpoint] [--checkpoint-layers L] [--ops blas|dnnl] [--against torch|blas] [--bench build/release/bench]
                  [--json FILE]

--ops is our back end; with --against blas the peer is our own bench with OpenBLAS. Else it needs bench/peers/venv, and Debian's libtcmalloc-minimal4 for --tcmalloc. Prints the medians after one warm step each, the
ratio of tokens/s, of peak memory, and both first losses, which must agree: they are of the same base on the same tokens.
"""
import argparse
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, "..", "..")
sys.path.insert(0, os.path.join(HERE, ".."))
from turns import Runner  # noqa: E402

TCMALLOC = "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["train", "eval"])
    p.add_argument("base")
    p.add_argument("--tcmalloc", action="store_true")
    p.add_argument("--steps", type=int, default=5)
    for name, value in (("samples", 4), ("seq", 512), ("rank", 16), ("threads", 2)):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--dtype", default="f32")
    p.add_argument("--checkpoint", action="store_true", help="the peer's, of every layer")
    p.add_argument("--checkpoint-layers", type=int, default=0, help="ours, of the first so many")
    p.add_argument("--bench", default=os.path.join(ROOT, "build/release/bench"))
    p.add_argument("--json")
    p.add_argument("--ops", default="blas")
    p.add_argument("--against", choices=["torch", "blas"], default="torch")
    a = p.parse_args()
    sizes = ["--samples", a.samples, "--seq", a.seq, "--threads", a.threads] + (["--rank", a.rank] * (a.what == "train"))
    sizes = [str(x) for x in sizes]
    env = {**os.environ, **({"LD_PRELOAD": TCMALLOC} if a.tcmalloc else {})}
    if a.tcmalloc and not os.path.exists(TCMALLOC):
        sys.exit(f"compare.py: {TCMALLOC} is missing: install libtcmalloc-minimal4")
    bench = [os.path.join(a.bench, "bench_" + a.what), "--base", a.base, "--turns", *sizes, "--ops"]
    if a.against == "torch":
        peer = Runner([os.path.join(ROOT, "build/peers/bin/python"), os.path.join(HERE, "torch_peer.py"), a.what, a.base,
                       "--dtype", a.dtype, *(["--checkpoint"] if a.checkpoint else []), *sizes], env)
        print(peer.line(), flush=True)
    else:
        peer = Runner([*bench, "blas"])
    ours = Runner([*bench, a.ops] + (["--checkpoint-layers", str(a.checkpoint_layers)] if a.checkpoint_layers else []))
    for _ in range(a.steps + 1):
        ours.step(), peer.step()
        print(f"  ours {ours.wall[-1]:.2f} s, peer {peer.wall[-1]:.2f} s", flush=True)
    rows = a.samples * a.seq
    result = {"what": a.what, "ops": a.ops, "against": a.against, "rows": rows, "dtype": a.dtype, "tcmalloc": a.tcmalloc,
              "checkpoint_layers": a.checkpoint_layers, "steps": a.steps}
    for name, r in (("ours", ours), ("peer", peer)):
        peak, wall, cpu = r.end(), statistics.median(r.wall[1:]), statistics.median(r.cpu[1:])
        result[name] = {"tokens_per_s": rows / wall, "cpu_s": cpu, "peak_mb": peak / 1e6, "first_loss": r.losses[0]}
        print(f"{name}  {rows / wall:7.1f} tokens/s  {wall:6.2f} s a step (CPU {cpu:6.2f})  peak {peak / 1e6:6.0f} MB"
              f"  first loss {r.losses[0]:.5f}")
    result["speed"] = result["ours"]["tokens_per_s"] / result["peer"]["tokens_per_s"]
    result["memory"] = result["ours"]["peak_mb"] / result["peer"]["peak_mb"]
    print(f"ours / peer: tokens/s {result['speed']:.3f}, CPU {result['peer']['cpu_s'] / result['ours']['cpu_s']:.3f}, "
          f"peak memory {result['memory']:.3f}")
    if ours.least:
        result["limit"] = statistics.median(peer.wall[1:]) / ours.least
        print(f"with nothing but products, as fast as the CPU multiplies in registers: {result['limit']:.3f}")
    if abs(ours.losses[0] - peer.losses[0]) > (1e-3 if a.dtype == "f32" else 0.05):
        sys.exit("compare.py: the first losses differ: the two did not do the same")
    if a.json:
        with open(a.json, "w") as f:
            json.dump(result, f)


main()
