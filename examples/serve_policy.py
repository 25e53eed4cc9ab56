"""Serve a policy that ``metarl export`` wrote, with numpy and onnxruntime alone: POST {"obs": [...]} -> {"action": ...}.

    python examples/serve_policy.py FOLDER [PORT]

A policy with memory also takes "reward" and "ended", of its last action, and {"reset": true} before another trial.
"""

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import onnxruntime


class Policy:
    def __init__(self, folder):
        self.contract = json.loads(Path(folder, "contract.json").read_text())
        digest = hashlib.sha256(Path(folder, "policy.onnx").read_bytes()).hexdigest()
        if digest != self.contract["files"]["policy.onnx"]["sha256"]:
            raise SystemExit("policy.onnx is not the file that contract.json describes")
        self.session = onnxruntime.InferenceSession(Path(folder, "policy.onnx"), providers=["CPUExecutionProvider"])
        self.types = {each["name"]: each["type"] for each in self.contract["inputs"]}
        self.reset()

    def reset(self):
        self.memory = {each["name"]: np.array(each["start"], each["type"]) for each in self.contract["memory"]}

    def __call__(self, obs, reward=0.0, ended=False):
        given = {"obs": obs, "reward": reward, "ended": ended}
        inputs = {name: np.array([value], self.types[name]) for name, value in given.items() if name in self.types}
        action, *after = self.session.run(None, inputs | self.memory)
        self.memory = dict(zip(self.memory, after, strict=True))
        return action[0].tolist()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked.pop("reset", False):
            self.server.policy.reset()
        answer = json.dumps({"action": self.server.policy(**asked)} if asked else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    server = HTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 8000), Handler)
    server.policy = Policy(sys.argv[1])
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
