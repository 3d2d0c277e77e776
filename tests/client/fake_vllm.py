#!/usr/bin/env python3
"""A server that answers as vLLM documents its calls for adapters at run time (vllm/entrypoints/openai/models/serving.py, read at
00153c8b): /v1/models, /v1/load_lora_adapter, /v1/unload_lora_adapter. It loads nothing, but reads an adapter's files as vLLM
must: the directory, the three required fields of adapter_config.json, a rank that it was started for, and a safetensors header.

usage: fake_vllm.py [--port N] [--base PATH] [--api-key KEY] [--no-updating] [--max-rank N]

Prints its port. Ends when its standard input does. POST /fake {"fail": CODE, "times": N, "stall": SECONDS, "path": PATH, "forget": true}
makes the next calls fail or stall, or starts the server anew without adapters; GET /fake lists the calls it got.
"""
import argparse
import json
import os
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

a = argparse.ArgumentParser()
a.add_argument("--port", type=int, default=0)
a.add_argument("--base", default="/models/base")
a.add_argument("--api-key")
a.add_argument("--no-updating", action="store_true")
a.add_argument("--max-rank", type=int, default=16)
args = a.parse_args()
adapters, calls, trouble, lock = {}, [], {"times": 0}, threading.Lock()


def error(message, kind, code):
    return code, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def check_adapter(path):
    """What is wrong with it, or None."""
    try:
        config = json.load(open(os.path.join(path, "adapter_config.json")))
        with open(os.path.join(path, "adapter_model.safetensors"), "rb") as f:
            json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    except OSError:
        return error(f"Loading lora {os.path.basename(path)} failed: No adapter found for {path}", "NotFoundError", 404)
    except ValueError as e:
        return error(str(e), "InternalServerError", 500)
    missing = [k for k in ("r", "lora_alpha", "target_modules") if k not in config]
    if missing:
        return error(f"missing required fields {missing}", "InternalServerError", 500)
    if config["r"] > args.max_rank:
        return error(f"LoRA rank {config['r']} is greater than max_lora_rank {args.max_rank}.", "InternalServerError", 500)
    return None


def load(body):
    name, path = body.get("lora_name"), body.get("lora_path")
    if not name or not path:
        return error("Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput", 400)
    if name in adapters:
        return error(f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                     "'load_inplace' to True.", "InvalidUserInput", 400)
    wrong = check_adapter(path)
    if wrong:
        return wrong
    adapters[name] = path
    return 200, f"Success: LoRA adapter '{name}' added successfully."


def unload(body):
    name = body.get("lora_name")
    if name not in adapters:
        return error(f"The lora adapter '{name}' cannot be found.", "NotFoundError", 404)
    del adapters[name]
    return 200, f"Success: LoRA adapter '{name}' removed successfully."


def models():
    base = os.path.basename(args.base)
    cards = [{"id": base, "object": "model", "owned_by": "vllm", "root": args.base, "parent": None, "max_model_len": 512}]
    cards += [{"id": n, "object": "model", "owned_by": "vllm", "root": p, "parent": base} for n, p in adapters.items()]
    return 200, {"object": "list", "data": cards}


def fake(body):
    trouble.update(body)
    if body.get("forget"):
        adapters.clear()
    return 200, {}


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def reply(self, code, body):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, method):
        routes = {("GET", "/v1/models"): lambda _: models()}
        if not args.no_updating:
            routes |= {("POST", "/v1/load_lora_adapter"): load, ("POST", "/v1/unload_lora_adapter"): unload}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/fake":
            return self.reply(*(fake(json.loads(body)) if method == "POST" else (200, calls)))
        with lock:
            calls.append([method, self.path, json.loads(body) if body else None])
            failing = trouble["times"] > 0 and trouble.get("path") in (None, self.path)
            trouble["times"] -= failing
        if failing and trouble.get("stall"):
            time.sleep(trouble["stall"])
        if failing and trouble.get("fail"):
            return self.reply(*error("made to fail", "InternalServerError", trouble["fail"]))
        if args.api_key and self.headers.get("Authorization") != f"Bearer {args.api_key}":
            return self.reply(401, {"error": "Unauthorized"})
        if (method, self.path) not in routes:
            return self.reply(404, {"detail": "Not Found"})
        if method == "POST" and self.headers.get("Content-Type") != "application/json":
            return self.reply(*error("Unsupported Media Type: Only 'application/json' is allowed", "BadRequestError", 400))
        with lock:
            answer = routes[method, self.path](json.loads(body) if body else {})
        self.reply(*answer)

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")


server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
print(server.server_address[1], flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
