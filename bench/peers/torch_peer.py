#!/usr/bin/env python3
"""The peer of bench_train and bench_eval in PyTorch + transformers + PEFT: a step for every line on stdin.

usage: torch_peer.py train|eval BASE.gguf [--samples 4] [--seq 512] [--rank 16] [--threads 2] [--dtype f32|bf16] [--checkpoint]

train  forward, mean loss over all rows, backward, clip to 1, AdamW (fused) on LoRA factors of all seven linears; with bf16
       the base is bf16, the adapters f32, under autocast, which is what Trainer(bf16=True) does
eval   forward and mean loss of the base, inference mode (a merged adapter costs the same)

Tokens are those of bench/lab.c. Every line: seconds, CPU seconds, loss. When stdin ends: the peak resident set in bytes.
First it prints one line of versions.
"""
import argparse
import contextlib
import os
import resource
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"
import numpy as np
import peft
import torch
import transformers

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tokens(samples, seq, vocab):
    """(samples, seq + 1) ids: the finaliser of MurmurHash3 over the index"""
    n, mask = samples * (seq + 1), np.uint64(0xffffffff)
    h = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(12345)) & mask
    h = (h ^ h >> np.uint64(16)) * np.uint64(0x85ebca6b) & mask
    h = (h ^ h >> np.uint64(13)) * np.uint64(0xc2b2ae35) & mask
    h ^= h >> np.uint64(16)
    return torch.from_numpy((h % np.uint64(vocab)).astype(np.int64)).view(samples, seq + 1)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("what", choices=["train", "eval"])
    p.add_argument("base")
    p.add_argument("--samples", type=int, default=4)
    p.add_argument("--seq", type=int, default=512)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    p.add_argument("--checkpoint", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    folder, file = os.path.split(os.path.abspath(a.base))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.bfloat16 if a.dtype == "bf16" else torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    ids = tokens(a.samples, a.seq, model.config.vocab_size)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    if a.what == "train":
        model = peft.get_peft_model(model, peft.LoraConfig(r=a.rank, lora_alpha=2 * a.rank, lora_dropout=0.0, bias="none",
                                                           task_type="CAUSAL_LM", target_modules=MODULES))
        model.train()
        if a.checkpoint:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        params = [q for q in model.parameters() if q.requires_grad]
        optimizer = torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    else:
        model.eval()
    auto = torch.autocast("cpu", dtype=torch.bfloat16) if a.dtype == "bf16" else contextlib.nullcontext()

    def train():
        with auto:
            loss = model(input_ids=x, labels=y, shift_labels=y).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def evaluate():
        with torch.inference_mode(), auto:
            return float(model(input_ids=x, labels=y, shift_labels=y).loss)

    print(f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), transformers {transformers.__version__}, "
          f"peft {peft.__version__}, malloc {os.path.basename(os.environ.get('LD_PRELOAD', '')) or 'glibc'}", flush=True)
    step = train if a.what == "train" else evaluate
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        loss = step()
        print(f"{time.perf_counter() - wall:.4f} {time.process_time() - cpu:.4f} {loss:.6f}", flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


main()
