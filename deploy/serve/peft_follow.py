#!/usr/bin/env python3
"""Follows a subscriber's directory in a program of your own, with transformers + PEFT: the base is loaded once, each version beside
the one before, under its own name, and the old one is dropped.

usage: peft_follow.py BASE ADAPTERS IDS.json [--versions N]      (pip install torch transformers peft)

BASE is a Hugging Face directory or name, ADAPTERS the --dir of `alluvium subscribe`, IDS.json an array of token ids. Prints the mean
loss of those tokens under the bare base and under each version that comes, a JSON line each; ends after N of them.
"""
import argparse
import json
import os
import time

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class Follower:
    """Call latest() between requests, from the thread that computes."""

    def __init__(self, base, adapters):
        self.base, self.adapters = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval(), adapters
        self.model, self.name = None, None

    def latest(self):
        """The name of the version in use, taken anew when `current` has moved; None: there is none yet."""
        path = os.path.realpath(os.path.join(self.adapters, "current"))  # a name of its own: the link is never loaded by itself
        name = os.path.basename(path)
        if not os.path.isdir(path) or name == self.name:
            return self.name
        if self.model is None:
            self.model = PeftModel.from_pretrained(self.base, path, adapter_name=name)
        else:
            self.model.load_adapter(path, adapter_name=name)
        self.model.set_adapter(name)
        if self.name:
            self.model.delete_adapter(self.name)
        self.model.eval()
        self.name = name
        return name

    def loss(self, ids):
        with torch.inference_mode():
            logits = (self.model or self.base)(torch.tensor([ids])).logits[0, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("adapters")
    parser.add_argument("ids")
    parser.add_argument("--versions", type=int, default=0)
    args = parser.parse_args()
    with open(args.ids) as f:
        ids = json.load(f)
    follower, seen, shown = Follower(args.base, args.adapters), None, 0
    print(json.dumps({"version": None, "mean_nll": follower.loss(ids)}), flush=True)
    while not args.versions or shown < args.versions:
        if follower.latest() == seen:
            time.sleep(0.5)
            continue
        seen, shown = follower.name, shown + 1
        print(json.dumps({"version": seen, "mean_nll": follower.loss(ids)}), flush=True)


if __name__ == "__main__":
    main()
