"""The time of a training step with PyTorch's DistributedDataParallel on gloo, and without
communication, for the models of benches/data_parallel.rs, measured and printed as there.

scripts/bench_peers.sh runs it.
"""

import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANKS = int(os.environ.get("MPI4TCH_BENCH_RANKS", "2"))
BATCH = 64
ROUNDS = 101


def perceptron():
    layers = []
    for i in range(10):
        if i != 0:
            layers.append(nn.ReLU())
        layers.append(nn.Linear(931, 931))
    return nn.Sequential(*layers)


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 1024),
        nn.ReLU(),
        nn.Linear(1024, 10),
    )


CASES = [("perceptron", perceptron, [931]), ("convolutions", convolutions, [1, 28, 28])]
WAYS = [
    ("PyTorch, no communication", lambda model: model),
    ("DistributedDataParallel", DistributedDataParallel),
    (
        "DDP, gradient_as_bucket_view",
        lambda model: DistributedDataParallel(model, gradient_as_bucket_view=True),
    ),
]


def training(model, sample):
    """Returns a function that makes a step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    batch = torch.randn(BATCH, *sample)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()

    return step


def measure(layers, sample):
    """Returns the milliseconds that a step took on the slowest rank, for each way and round."""
    steps = [training(way(layers()), sample) for _, way in WAYS]
    times = torch.zeros(len(steps), ROUNDS, dtype=torch.float64)
    for i in range(ROUNDS):
        for step, of_step in zip(steps, times):
            dist.barrier()
            start = time.perf_counter()
            step()
            of_step[i] = (time.perf_counter() - start) * 1e3
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times.tolist()


def run(rank, folder):
    # A core for each rank, as Open MPI's launcher does it: both ranks were seen to share one.
    os.sched_setaffinity(0, {rank % os.cpu_count()})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    for name, layers, sample in CASES:
        for (way, _), times in zip(WAYS, measure(layers, sample)):
            if rank == 0:
                step, least = statistics.median(times), min(times)
                print(f"{name:<14}{way:<28}{step:>9.2f} ms{least:>9.2f} ms", flush=True)
    dist.barrier()
    # Not by PyTorch's own end, in which a process was seen to abort.
    os._exit(0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (folder,), RANKS)
