"""The peers of bench_training and bench_model in PyTorch, eager: the same models, step for step.

    training("training/dtype:fp32/d_model:256/layers:6/heads:8/kv_heads:2/vocab:4096/batch:4/seq:256")
    prefill(shape, tokens), decode(shape, context)        shape: see SMOLLM2

Each returns (run, tokens): run() does the work once, tokens is what one run processes. Numbers of threads
are torch.set_num_threads's business. bench/compare.py calls these; `python3 bench/torch_models.py CASE...`
times them alone.
"""
import time

import torch
import torch.nn.functional as F
from torch import nn

SMOLLM2 = dict(d_model=576, layers=30, heads=9, kv_heads=3, ffn=1536, vocab=49152, theta=100000.0)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def case_values(case):
    """{'dtype': 'fp32', 'd_model': 256, ...} of a case's name."""
    values = dict(part.split(":", 1) for part in case.split("/")[1:])
    return {key: int(value) if value.isdigit() else value for key, value in values.items()}


def ffn_width(d_model):
    return (8 * d_model // 3 + 63) // 64 * 64


class RmsNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rotate(x, cos, sin):
    """x [batch, heads, seq, head_dim], halves turned by cos, sin [seq, head_dim / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.heads, self.kv_heads = s["heads"], s["kv_heads"]
        self.head_dim = s["d_model"] // s["heads"]
        self.norm_1, self.norm_2 = RmsNorm(s["d_model"]), RmsNorm(s["d_model"])
        rows = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv = nn.Linear(s["d_model"], rows, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, s["d_model"], bias=False)
        self.gate_up = nn.Linear(s["d_model"], 2 * s["ffn"], bias=False)
        self.down = nn.Linear(s["ffn"], s["d_model"], bias=False)

    def forward(self, h, cos, sin, cache, position):
        batch, seq, _ = h.shape
        qkv = self.qkv(self.norm_1(h)).view(batch, seq, -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            cache[0][:, :, position : position + seq] = k
            cache[1][:, :, position : position + seq] = v
            k, v = cache[0][:, :, : position + seq], cache[1][:, :, : position + seq]
        a = F.scaled_dot_product_attention(q, k, v, is_causal=seq > 1, enable_gqa=True)
        h = h + self.out(a.transpose(1, 2).reshape(batch, seq, -1))
        gate, up = self.gate_up(self.norm_2(h)).chunk(2, dim=-1)
        return h + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    """Embedding, blocks, norm, tied output matrix."""

    def __init__(self, s):
        super().__init__()
        self.shape = s
        self.embedding = nn.Embedding(s["vocab"], s["d_model"])
        self.blocks = nn.ModuleList(Block(s) for _ in range(s["layers"]))
        self.norm = RmsNorm(s["d_model"])
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def angles(self, position, seq, dtype):
        dim = self.shape["d_model"] // self.shape["heads"]
        frequency = self.shape["theta"] ** (-torch.arange(0, dim, 2) / dim)
        angle = torch.outer(torch.arange(position, position + seq), frequency)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def forward(self, ids, cache=None, position=0, last=False):
        h = self.embedding(ids)
        cos, sin = self.angles(position, ids.shape[1], h.dtype)
        for i, block in enumerate(self.blocks):
            h = block(h, cos, sin, cache[i] if cache else None, position)
        h = self.norm(h[:, -1:] if last else h)
        return F.linear(h, self.embedding.weight)


def training(case):
    """One step: forward, cross-entropy, backward, clipping to norm 1, AdamW. bf16 is autocast."""
    c = case_values(case)
    shape = dict(d_model=c["d_model"], layers=c["layers"], heads=c["heads"], kv_heads=c["kv_heads"],
                 ffn=ffn_width(c["d_model"]), vocab=c["vocab"], theta=10000.0)
    torch.manual_seed(1)
    model = Llama(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.randint(0, c["vocab"], (c["batch"], c["seq"] + 1))
    low = c.get("dtype", "fp32") != "fp32"

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        return loss.item()

    return run, c["batch"] * c["seq"]


def model_and_cache(shape, capacity, dtype):
    torch.manual_seed(1)
    model = Llama(shape).to(DTYPES[dtype]).eval()
    size = (1, shape["kv_heads"], capacity, shape["d_model"] // shape["heads"])
    cache = [[torch.zeros(size, dtype=DTYPES[dtype]) for _ in range(2)] for _ in range(shape["layers"])]
    return model, cache


def prefill(shape, tokens, dtype="fp32"):
    """A prompt of `tokens`, logits of its last position."""
    model, cache = model_and_cache(shape, tokens, dtype)
    ids = torch.randint(0, shape["vocab"], (1, tokens))

    def run():
        with torch.inference_mode():
            return model(ids, cache, 0, last=True)

    return run, tokens


def decode(shape, context, dtype="fp32"):
    """One token after `context` others."""
    model, cache = model_and_cache(shape, context + 1, dtype)
    ids = torch.randint(0, shape["vocab"], (1, 1))

    def run():
        with torch.inference_mode():
            return model(ids, cache, context, last=True)

    return run, 1


def median_seconds(run, rounds=5):
    run()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        step, tokens = training(name)
        seconds = median_seconds(step)
        print(f"{name} {seconds * 1e3:.1f} ms {tokens / seconds:.0f} tokens/s")
