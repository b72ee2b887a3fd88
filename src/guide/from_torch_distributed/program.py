import torch
import torch.distributed as dist
import torch.distributed.nn.functional as fn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()

# A communication with a derivative. All ranks have the same loss, which is to count once.
x = torch.tensor([1.0 + rank], dtype=torch.double, requires_grad=True)
y = fn.all_reduce(x)
loss = y.square().sum() / size
loss.backward()
print(f"rank {rank}: y {y.item():.1f}, gradient {x.grad.item():.1f}", flush=True)

# Another one: each rank has one element for every rank.
elements = list((10.0 * rank + torch.arange(size, dtype=torch.double)).chunk(size))
exchanged = fn.all_to_all([torch.empty_like(element) for element in elements], elements)
print(f"rank {rank}: exchanged {torch.cat(exchanged).tolist()}", flush=True)

# One without a derivative, in place.
z = x.detach().clone()
dist.all_reduce(z, op=dist.ReduceOp.MAX)

# Training, in steps of two batches. Gradients are averaged over the ranks.
model = torch.nn.Linear(1, 1, bias=False, dtype=torch.double)
torch.nn.init.ones_(model.weight)
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
batch = torch.tensor([[1.0 + rank / size]], dtype=torch.double)
for step in range(3):
    optimizer.zero_grad()
    with parallel.no_sync():
        (parallel(batch) - 3.0).square().mean().backward()
    (parallel(2.0 * batch) - 3.0).square().mean().backward()
    optimizer.step()
print(f"rank {rank}: weight {model.weight.item():.6f}", flush=True)

# A ring of messages, which autograd does not see.
received = torch.empty_like(z)
operations = [
    dist.P2POp(dist.isend, x.detach(), (rank + 1) % size),
    dist.P2POp(dist.irecv, received, (rank + size - 1) % size),
]
for work in dist.batch_isend_irecv(operations):
    work.wait()
print(f"rank {rank}: received {received.item():.1f}", flush=True)
dist.destroy_process_group()
