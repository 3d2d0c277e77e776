#!/usr/bin/env python3
"""How far bf16 takes a loss curve from f32's: ours, and PyTorch + PEFT's, each against its own f32 run, on the same tokens.

usage: precision.py BASE.gguf [--steps 50] [--samples 1] [--seq 512] [--threads 2] [--svg FILE]

The two programs draw their factors differently, so only each one's own difference says something. Prints its mean and its largest value;
--svg draws both. Needs bench/peers/venv and a CPU with bf16 products.
"""
import argparse
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.realpath(os.path.join(HERE, "..", ".."))
sys.path.insert(0, os.path.join(HERE, ".."))
from turns import Runner  # noqa: E402

COLOURS = {"ours": "#0b62a4", "PyTorch + PEFT": "#c0561f"}


def picture(curves, steps):
    """Above the losses, f32 drawn through and bf16 dashed; below bf16 less f32."""
    losses = [x for f32, bf16 in curves.values() for x in f32 + bf16]
    gaps = [abs(b - a) for f32, bf16 in curves.values() for a, b in zip(f32, bf16)]
    low, high, gap = min(losses), max(losses), max(gaps) or 1

    def path(values, y):
        return "M" + "L".join(f"{70 + 520 * i / max(steps - 1, 1):.1f} {y(v):.1f}" for i, v in enumerate(values))

    def upper(v):
        return 220 - 190 * (v - low) / (high - low)

    def lower(v):
        return 320 - 60 * v / gap

    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 430" font-family="sans-serif" font-size="12">',
           '<rect width="640" height="430" fill="white"/><path d="M70 30V220H600M70 260V380M70 320H600" fill="none" stroke="#444"/>',
           '<text x="70" y="20">loss, nats per token: f32 (line), bf16 (dashes)</text>',
           '<text x="70" y="252">bf16 less f32</text>',
           f'<text x="330" y="408" text-anchor="middle">steps, 1 to {steps}</text>']
    for y, text in ((upper(low), f"{low:.2f}"), (upper(high), f"{high:.2f}"), (lower(gap), f"{gap:+.3f}"), (lower(0), "0"),
                    (lower(-gap), f"{-gap:+.3f}")):
        out.append(f'<text x="64" y="{y + 4:.0f}" text-anchor="end">{text}</text>')
    for i, (name, (f32, bf16)) in enumerate(curves.items()):
        style = f'fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"'
        out += [f'<path d="{path(f32, upper)}" {style}/>', f'<path d="{path(bf16, upper)}" {style} stroke-dasharray="4 3"/>',
                f'<path d="{path([b - a for a, b in zip(f32, bf16)], lower)}" {style}/>',
                f'<text x="460" y="{60 + 18 * i}" fill="{COLOURS[name]}">{name}</text>']
    return "\n".join(out + ["</svg>", ""])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("base")
    for name, value in (("steps", 50), ("samples", 1), ("seq", 512), ("threads", 2)):
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--svg")
    a = p.parse_args()
    sizes = ["--samples", str(a.samples), "--seq", str(a.seq), "--threads", str(a.threads)]
    ours = [os.path.join(ROOT, "build/release/bench/bench_train"), "--base", a.base, "--turns", *sizes, "--ops"]
    torch = [os.path.join(ROOT, "build/peers/bin/python"), os.path.join(HERE, "torch_peer.py"), "train", a.base, *sizes, "--dtype"]
    runs = {"ours": [Runner([*ours, x]) for x in ("blas", "bf16")],
            "PyTorch + PEFT": [Runner([*torch, x]) for x in ("f32", "bf16")]}
    for r in runs["PyTorch + PEFT"]:
        print(r.line(), flush=True)
    for step in range(a.steps):
        for pair in runs.values():
            for r in pair:
                r.step()
        if sys.stderr.isatty():
            print(f"\r  step {step + 1} of {a.steps}", end="", file=sys.stderr, flush=True)
    curves = {name: [r.losses for r in pair] for name, pair in runs.items()}
    for name, (f32, bf16) in curves.items():
        gaps = [abs(y - x) for x, y in zip(f32, bf16)]
        print(f"{name}: f32 {f32[0]:.3f} to {f32[-1]:.3f}, bf16 {bf16[0]:.3f} to {bf16[-1]:.3f}; "
              f"apart by {statistics.mean(gaps):.4f} in the mean, {max(gaps):.4f} at most")
    if a.svg:
        with open(a.svg, "w") as f:
            f.write(picture(curves, a.steps))
    for pair in runs.values():
        for r in pair:
            r.end()


main()
