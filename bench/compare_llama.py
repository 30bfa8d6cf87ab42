#!/usr/bin/env python3
"""rapt and llama.cpp on the same GGUF file, interleaved: tokens a second of processor time.

    bench/compare_llama.py [--bench build/bench/bench_model] [--rounds 5] [--models DIR] [NAME...]

NAME is smollm2-135m or gemma3-270m. llama.cpp comes as the Python package xllamacpp. Both use one
thread; each round runs every case of both, and the table shows medians, with the ratio of each pair of
neighbours in a round. Seconds are the process's processor time, so that other work on the machine
counts for neither.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

FILES = {"smollm2-135m": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3-270m": "gemma-3-270m-q4_k_m.gguf"}
STEPS = 48
CASES = [("prefill 512", None), ("decode at 0", 1), ("decode at 512", 512), ("decode at 2048", 2048)]


def find(name, folder):
    places = [folder, os.environ.get("RAPT_MODELS"), "models", pathlib.Path.home() / ".cache" / "rapt"]
    for place in filter(None, places):
        path = pathlib.Path(place) / FILES[name]
        if path.exists():
            return path
    sys.exit(f"compare_llama: {FILES[name]} is not there; examples/fetch_model.sh {name} fetches it")


class LlamaCpp:
    def __init__(self, path):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup = 4096, 1, False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.n_gpu_layers = 0
        params.verbosity = -1
        self.server = xllamacpp.Server(params)

    def seconds(self, prompt, tokens):
        start = time.process_time()
        self.server.handle_completions(
            {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": True, "ignore_eos": True}
        )
        return time.process_time() - start

    def rate(self, context):
        """Tokens a second; a prompt that is in the cache costs nothing but its last token."""
        if context is None:
            self.seconds([5, 6, 7], 1)  # pushes the prompt out of the cache
            return 512 / self.seconds(ids(512), 1)
        self.seconds(ids(context), 1)
        before = self.seconds(ids(context), 1)
        return STEPS / (self.seconds(ids(context), STEPS + 1) - before)


def ids(n):
    return [1000 + 7 * i for i in range(n)]


def rapt_rates(bench, name, threads, environment):
    prefix = f"model/name:{name}/weights:blocks/"
    cases = [
        prefix + ("pass:prefill/tokens:512" if context is None else f"pass:decode/context:{context}") + f"/threads:{threads}"
        for _, context in CASES
    ]
    command = [bench, "--benchmark_format=json"] + [part for case in cases for part in ("--case", case)]
    out = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    rates = []
    for case, (_, context) in zip(cases, CASES):
        run = next(b for b in out["benchmarks"] if b["name"].startswith(case))
        rates.append((512 if context is None else 1) / (run["cpu_time"] * 1e-3))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--bench", default="build/bench/bench_model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models")
    args = parser.parse_args()
    for name in args.names or list(FILES):
        path = find(name, args.models)
        llama = LlamaCpp(path)
        environment = dict(os.environ, RAPT_MODELS=str(path.parent))
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(rapt_rates(args.bench, name, 1, environment))
            theirs.append([llama.rate(context) for _, context in CASES])
        print(f"\n{path.name}, one thread, medians of {args.rounds} rounds\n")
        print("| | rapt, tokens/s | llama.cpp | ratio |\n|---|---|---|---|")
        for i, (label, _) in enumerate(CASES):
            pairs = [(a[i], b[i]) for a, b in zip(ours, theirs)]
            print(
                f"| {label} | {statistics.median(a for a, _ in pairs):.0f} | {statistics.median(b for _, b in pairs):.0f}"
                f" | {statistics.median(a / b for a, b in pairs):.2f} |"
            )


if __name__ == "__main__":
    main()
