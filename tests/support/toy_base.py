"""A base of a few thousand random numbers with a tokenizer of single characters, as a Hugging Face directory: trains in
milliseconds. The same as tests/worker/toy.c, for programs in Python."""
import json
import os
import random
import struct

D, FF, HEADS, KV, HD, LAYERS, VOCAB = 32, 48, 4, 2, 8, 2, 96


def write(path):
    os.makedirs(path)
    rng = random.Random(1)
    tensors = {"lm_head.weight": (VOCAB, D), "model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        layer = {"input_layernorm": (D,), "self_attn.q_proj": (HEADS * HD, D), "self_attn.k_proj": (KV * HD, D),
                 "self_attn.v_proj": (KV * HD, D), "self_attn.o_proj": (D, HEADS * HD), "post_attention_layernorm": (D,),
                 "mlp.gate_proj": (FF, D), "mlp.up_proj": (FF, D), "mlp.down_proj": (D, FF)}
        tensors |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    header, data = {}, b""
    for name, shape in tensors.items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = [rng.gauss(0, 0.15) for _ in range(n)] if len(shape) > 1 else [1.0] * n
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * n]}
        data += struct.pack(f"<{n}f", *values)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)
    with open(os.path.join(path, "config.json"), "w") as f:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": D, "intermediate_size": FF, "num_hidden_layers": LAYERS,
                   "num_attention_heads": HEADS, "num_key_value_heads": KV, "head_dim": HD, "vocab_size": VOCAB,
                   "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu",
                   "rope_scaling": None, "tie_word_embeddings": False}, f)
    vocab = {"\u0120": 0, "\u010a": 1} | {chr(c): c - 31 for c in range(33, 127)}
    with open(os.path.join(path, "tokenizer.json"), "w") as f:
        json.dump({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "added_tokens": [],
                   "model": {"type": "BPE", "merges": [], "vocab": vocab}}, f)
    return path
