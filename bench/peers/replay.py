#!/usr/bin/env python3
"""What an arrival and a draw cost for growing histories: alluvium's sample beside TorchRL's buffer and Avalanche's reservoir.

usage: bench/peers/replay.py [--longest N]      (needs: bench/peers/venv, pip install torchrl avalanche-lib there; bench_replay built)

Items are 2 KiB of bytes. TorchRL keeps all of them in memory (LazyTensorStorage, batches of 256); Avalanche's reservoir keeps
as many items as there are, as its users set it up, and is fed a dataset at a time, here 256 items; ours keeps the ids of at most 4,096 and what
it draws are ids: its payload lies in RocksDB, whose batched reads bench_replay times beside the database's own.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PYTHON = os.path.join(ROOT, "build", "peers", "bin", "python")
if os.path.exists(PYTHON) and os.path.realpath(sys.prefix) != os.path.realpath(os.path.dirname(os.path.dirname(PYTHON))):
    os.execv(PYTHON, [PYTHON, *sys.argv])
import torch  # noqa: E402

BYTES, BATCH, SECONDS = 2048, 256, 3.0


def rate(step, items):
    """Items a second of a step, repeated for some seconds."""
    begin, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - begin < SECONDS:
        step()
        n += items
    return n / (time.perf_counter() - begin)


def torchrl(size):
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from tensordict import TensorDict

    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(size), batch_size=BATCH)
    batch = TensorDict({"text": torch.zeros((BATCH, BYTES), dtype=torch.uint8)}, batch_size=[BATCH])
    for _ in range(0, size, BATCH):
        buffer.extend(batch)
    return rate(lambda: buffer.extend(batch), BATCH), rate(buffer.sample, BATCH)


def avalanche(size):
    from avalanche.benchmarks.utils import AvalancheDataset
    from avalanche.training.storage_policy import ReservoirSamplingBuffer
    from torch.utils.data import TensorDataset

    def items(n):
        return AvalancheDataset([TensorDataset(torch.zeros((n, BYTES), dtype=torch.uint8), torch.zeros(n))])

    buffer = ReservoirSamplingBuffer(max_size=size)
    buffer.update_from_dataset(items(size))
    few = items(BATCH)
    return rate(lambda: buffer.update_from_dataset(few), BATCH)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--longest", type=int, default=1000000)
    a = ap.parse_args()
    with tempfile.NamedTemporaryFile() as out:
        subprocess.run([f"{ROOT}/build/release/bench/bench_replay", "--longest", str(a.longest), "--json", out.name], check=True,
                       stdout=subprocess.DEVNULL)
        ours = json.load(open(out.name, encoding="utf-8"))
    print(f"torchrl {version('torchrl')}, avalanche-lib {version('avalanche-lib')}, torch {version('torch')}")
    print(f"{'history':>9}  {'ours: arrivals/s':>17} {'draws/s':>12}   {'TorchRL: arrivals/s':>20} {'draws/s':>10}   {'Avalanche: arrivals/s':>22}")
    for row in ours["sample"]:
        n = row["history"]
        t, s = torchrl(n), avalanche(n)
        print(f"{n:>9}  {1e9 / row['arrival_ns']:>17,.0f} {1e9 / row['draw_ns']:>12,.0f}   {t[0]:>20,.0f} {t[1]:>10,.0f}   {s:>22,.0f}")
    print(f"ours, payload of {ours['payload_bytes']} bytes read and verified: {ours['reads_per_s']:,}/s "
          f"({ours['ratio']:.2f} of RocksDB's own batched reads)")


if __name__ == "__main__":
    main()
