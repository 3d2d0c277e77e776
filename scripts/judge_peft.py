#!/usr/bin/env python3
"""Mean loss of a text under a base and under each of some PEFT adapters, by transformers + PEFT on the dequantised base.

usage: judge_peft.py BASE.gguf IDS.json [ADAPTER_DIR ...]
       (pip install torch transformers==5.23.0 peft==0.21.2 gguf==0.19.0; about 6 GB, so not part of the tests)

IDS.json is an array of token ids (transformers reads the GGUF's tokenizer without its digits step, so it is not asked). One
JSON line for the bare base and one for each adapter: the mean negative log-likelihood in nats of tokens 1 .. n-1.
"""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import peft
import torch
from transformers import AutoModelForCausalLM


def mean_loss(model, ids):
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1].double()
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("ids")
    parser.add_argument("adapters", nargs="*")
    args = parser.parse_args()
    directory, file = os.path.split(os.path.abspath(args.base))
    with open(args.ids) as f:
        ids = json.load(f)
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=file, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    print(json.dumps({"adapter": None, "mean_nll": mean_loss(model, ids), "targets": len(ids) - 1}), flush=True)
    for adapter in args.adapters:
        adapted = peft.PeftModel.from_pretrained(model, adapter).eval()
        print(json.dumps({"adapter": adapter, "mean_nll": mean_loss(adapted, ids), "targets": len(ids) - 1}), flush=True)
        model = adapted.unload()


main()
