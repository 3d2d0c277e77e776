"""A program that takes a step for every line on stdin (bench_train --turns, bench_eval --turns, peers/torch_peer.py)."""
import subprocess
import sys


class Runner:
    def __init__(self, command, env=None):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.wall, self.cpu, self.losses = [], [], []

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args[0]} ended early with {self.process.wait()}")
        return line.strip()

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wall, cpu, loss = map(float, self.line().split())
        self.wall.append(wall), self.cpu.append(cpu), self.losses.append(loss)

    def end(self):
        """The peak of its memory, in bytes. `least`: the seconds that a step's products must take on this CPU, 0 if it does not say."""
        self.process.stdin.close()
        peak, self.least = map(float, (self.line() + " 0").split()[:2])
        self.process.wait()
        return peak
