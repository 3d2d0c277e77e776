#!/usr/bin/env python3
"""Answers as llama-server does (tools/server/README.md of llama.cpp) to what a hook asks: GET /health, GET /lora-adapters.

FAKE_LLAMA_DELAY: seconds until it answers.
Takes llama-server's options --host, --port, -m, --lora. Ends at once, as llama-server does, when a file is missing or is no GGUF.
"""
import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

a = argparse.ArgumentParser()
a.add_argument("--host")
a.add_argument("--port", type=int)
a.add_argument("-m")
a.add_argument("--lora")
args = a.parse_args()
try:
    if open(args.lora, "rb").read(4) != b"GGUF":
        sys.exit("error: failed to apply lora adapter")
except OSError as e:
    sys.exit(f"error: {e}")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        answers = {"/health": {"status": "ok"}, "/lora-adapters": [{"id": 0, "path": args.lora, "scale": 1.0}]}
        data = json.dumps(answers.get(self.path, {"error": {"code": 404}})).encode()
        self.send_response(200 if self.path in answers else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


time.sleep(float(os.environ.get("FAKE_LLAMA_DELAY", "0")))
HTTPServer((args.host, args.port), Handler).serve_forever()
