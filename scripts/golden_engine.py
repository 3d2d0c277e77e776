#!/usr/bin/env python3
"""Makes tests/golden/engine/: what PyTorch, transformers and PEFT compute, for tests/model/test_golden.c.

usage: golden_engine.py [SmolLM2-135M-Instruct.Q4_1.gguf]     without the file only the toys are made

Run by hand when the cases change; the files are committed and continuous integration only reads them.
Needs: pip install torch transformers peft gguf safetensors. The weights are f32, the arithmetic is f64: PyTorch's f32 is
itself 2e-5 nats off on this vocabulary.

Adapters and check vectors are not stored: both sides make them from noise(), a hash of the index.
  toys    llama, llama3 (its RoPE scaling), qwen2, qwen3: a random checkpoint of two layers, and for two samples the logits, the loss, the whole
          gradient of the adapter (layout of adapter.h) and the losses of 50 AdamW steps
  objectives  on the toy llama and qwen3: DPO with the base as its reference and KL to logits from noise(), loss and gradient
  smollm2 loss of two texts on the base; with an adapter the loss, and of every factor's gradient the norm and 16
          projections on vectors of random signs; the losses of 50 AdamW steps
"""
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import (AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM,
                          Qwen3Config, Qwen3ForCausalLM)

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "tests", "golden", "engine")
MODULES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj"]
PROJECTIONS, STEPS = 16, 50

ENGLISH = """The lighthouse stood at the end of a narrow spit of land, and every evening the keeper
walked out along the stones to light the lamp. In winter the wind came hard from the north and
the waves broke over the path, so that he had to wait for the tide to turn before he could cross.
He had lived there for thirty years, and in all that time the lamp had failed only once, on the
night his daughter was born. The next morning the fishermen came to his door, not to complain, but
to bring bread and smoked fish, because they had seen the dark tower and guessed the reason.
"""

OCAML = """module StringMap = Map.Make (String)

type expr =
  | Int of int
  | Var of string
  | Add of expr * expr
  | Mul of expr * expr
  | Let of string * expr * expr

let rec eval env = function
  | Int n -> n
  | Var x -> (
      match StringMap.find_opt x env with
      | Some v -> v
      | None -> failwith ("unbound variable: " ^ x))
  | Add (a, b) -> eval env a + eval env b
  | Mul (a, b) -> eval env a * eval env b
  | Let (x, e, body) ->
      let v = eval env e in
      eval (StringMap.add x v env) body

let rec fold_left f acc = function
  | [] -> acc
  | x :: xs -> fold_left f (f acc x) xs

let () =
  let e = Let ("x", Int 5, Add (Var "x", Mul (Int 2, Var "x"))) in
  Printf.printf "%d\\n" (eval StringMap.empty e)
"""


def mixed(n, seed):
    """n 32-bit hashes of (seed, index): the finaliser of MurmurHash3."""
    mask = np.uint64(0xffffffff)
    h = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed * 40503 + 12345)) & mask
    h ^= h >> np.uint64(16)
    h = h * np.uint64(0x85ebca6b) & mask
    h ^= h >> np.uint64(13)
    h = h * np.uint64(0xc2b2ae35) & mask
    return h ^ (h >> np.uint64(16))


def noise(n, seed):
    """uniform in [-1, 1)"""
    return (mixed(n, seed).astype(np.float64) / 2**31 - 1).astype(np.float32)


def factors(model):
    """The adapter's tensors in the order of adapter.h."""
    named = dict(model.named_parameters())
    for layer in range(model.config.num_hidden_layers):
        for module in MODULES:
            for factor in "AB":
                yield factor, named[f"base_model.model.model.layers.{layer}.{module}.lora_{factor}.default.weight"]


def adapted(model, rank, alpha, b_size):
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none",
                                             task_type="CAUSAL_LM", target_modules=[m.split(".")[1] for m in MODULES]))
    for i, (factor, p) in enumerate(factors(model)):
        size = 1 / np.sqrt(p.shape[1]) if factor == "A" else b_size
        p.data = torch.from_numpy((noise(p.numel(), i) * np.float32(size)).reshape(p.shape)).double()
    return model


def nll_sum(model, ids):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum"), logits


def backward(model, samples):
    """Loss in nats per target over all samples; gradients in place."""
    model.zero_grad()
    total, targets = 0.0, sum(len(s) - 1 for s in samples)
    for ids in samples:
        loss = nll_sum(model, ids)[0] / targets
        loss.backward()
        total += loss.item()
    return total


def train(model, samples, rate):
    params = [p for _, p in factors(model)]
    opt = torch.optim.AdamW(params, lr=rate, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
    losses = []
    for step in range(STEPS):
        losses.append(backward(model, samples))
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.param_groups[0]["lr"] = rate * min(1, (step + 1) / 4)
        opt.step()
    return np.array(losses, np.float32)


def toy(name, model_class, config):
    torch.manual_seed(7)
    model = model_class(config).float()
    for n, p in model.named_parameters():  # norms and biases are born trivial: make them count
        if p.dim() == 1:
            p.data += torch.from_numpy(noise(p.numel(), 99)) * 0.3
        else:
            p.data *= 15
    model.save_pretrained(os.path.join(OUT, name))
    model.double()
    os.unlink(os.path.join(OUT, name, "generation_config.json"))
    samples = [[int(x) % config.vocab_size for x in mixed(n, 1000 + n)] for n in (9, 14)]
    model = adapted(model, 2, 3, 0.2)
    with torch.no_grad():
        logits = np.concatenate([nll_sum(model, s)[1][:-1].numpy() for s in samples])
    loss = backward(model, samples)
    grad = np.concatenate([p.grad.numpy().ravel() for _, p in factors(model)])
    save_file({"ids": np.array(sum(samples, []), np.float32), "lengths": np.array([len(s) for s in samples], np.float32),
               "logits": logits.astype(np.float32), "loss": np.array([loss], np.float32), "grad": grad.astype(np.float32),
               "losses": train(model, samples, 1e-2)}, os.path.join(OUT, name + ".safetensors"))
    print(name, "loss", loss, "gradient", np.linalg.norm(grad))


def gradient_of(model, loss):
    model.zero_grad()
    loss.backward()
    return np.concatenate([p.grad.numpy().ravel() for _, p in factors(model)]).astype(np.float32)


def objectives(name):
    """The samples of toy(), the first four tokens of each a prompt."""
    model = AutoModelForCausalLM.from_pretrained(os.path.join(OUT, name), dtype=torch.float32).double()
    vocab, beta, prompt = model.config.vocab_size, 0.3, 4
    samples = [[int(x) % vocab for x in mixed(n, 1000 + n)] for n in (9, 14)]

    def answer(ids):  # its log-probability
        logits = model(input_ids=torch.tensor([ids])).logits[0, prompt - 1:-1]
        return -torch.nn.functional.cross_entropy(logits, torch.tensor(ids[prompt:]), reduction="sum")

    with torch.no_grad():
        reference = [answer(s).item() for s in samples]
    model = adapted(model, 2, 3, 0.2)
    chosen, rejected = (answer(s) - r for s, r in zip(samples, reference))
    dpo = -torch.nn.functional.logsigmoid(beta * (chosen - rejected))
    dpo_grad = gradient_of(model, dpo)
    rows = sum(len(s) - 1 for s in samples)
    teacher = torch.from_numpy(noise(rows * vocab, 77).reshape(rows, vocab) * np.float32(3)).double()
    logits = torch.cat([model(input_ids=torch.tensor([s])).logits[0, :-1] for s in samples])
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction="sum",
                                    log_target=True) / rows
    kl_grad = gradient_of(model, kl)
    save_file({"reference": np.array(reference, np.float32), "dpo": np.array([dpo.item()], np.float32),
               "dpo_grad": dpo_grad, "kl": np.array([kl.item()], np.float32), "kl_grad": kl_grad},
              os.path.join(OUT, name + "_objectives.safetensors"))
    print(name, "dpo", dpo.item(), np.linalg.norm(dpo_grad), "kl", kl.item(), np.linalg.norm(kl_grad))


def smollm2(gguf):
    from transformers import AutoTokenizer
    folder, file = os.path.split(os.path.abspath(gguf))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).double()
    samples = [tokenizer(text).input_ids for text in (ENGLISH, OCAML)]
    with torch.no_grad():
        base = [nll_sum(model, s)[0].item() / (len(s) - 1) for s in samples]
    model = adapted(model, 16, 32, 0.02)
    loss = backward(model, samples)
    norms, projections = [], []
    for i, (_, p) in enumerate(factors(model)):
        g = p.grad.numpy().ravel().astype(np.float64)
        h = mixed(g.size, 5000 + i)
        norms.append(np.linalg.norm(g))
        projections.append([np.dot(g, 1.0 - 2.0 * ((h >> np.uint64(k)) & np.uint64(1)).astype(np.float64))
                            for k in range(PROJECTIONS)])
    losses = train(model, [s[:32] for s in samples], 1e-3)
    save_file({"ids": np.array(sum(samples, []), np.float32), "lengths": np.array([len(s) for s in samples], np.float32),
               "base": np.array(base, np.float32), "loss": np.array([loss], np.float32),
               "norms": np.array(norms, np.float32), "projections": np.array(projections, np.float32),
               "losses": losses}, os.path.join(OUT, "smollm2.safetensors"))
    print("smollm2 base", base, "loss", loss, "losses", losses[0], losses[-1])


def main():
    os.makedirs(OUT, exist_ok=True)
    small = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=1000.0,
                 bos_token_id=None, eos_token_id=None)
    # of waves of 6, 35, 199 and 1,117 positions one stays, one is blended, two are stretched
    scaled = {**small, "hidden_size": 32, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}
    del scaled["rope_theta"]
    toy("llama", LlamaForCausalLM, LlamaConfig(**small, tie_word_embeddings=False))
    toy("llama3", LlamaForCausalLM, LlamaConfig(**scaled, tie_word_embeddings=True))
    toy("qwen2", Qwen2ForCausalLM, Qwen2Config(**small, tie_word_embeddings=True))
    toy("qwen3", Qwen3ForCausalLM, Qwen3Config(**small, head_dim=8, tie_word_embeddings=True))
    objectives("llama")
    objectives("qwen3")
    if len(sys.argv) > 1:
        smollm2(sys.argv[1])


main()
