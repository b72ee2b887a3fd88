import torch
from mpi4torch import COMM_WORLD as comm
from mpi4torch import MPI_SUM, JoinDummies, JoinDummiesHandle

rank, size = comm.rank, comm.size
left, right = (rank + size - 1) % size, (rank + 1) % size

# One loss of all ranks' data. Each rank has a copy of w; the mean of the copies is used.
w = torch.tensor([2.0], dtype=torch.double, requires_grad=True)
data = torch.tensor([1.0 + rank], dtype=torch.double)
mean = comm.Allreduce(w, MPI_SUM) / size
local = (mean * data - 1.0).square().sum()
loss = comm.Allreduce(local, MPI_SUM)
loss.backward()
print(f"rank {rank}: loss {loss.item():.1f}, gradient {w.grad.item():.1f}", flush=True)

# A ring of messages, ordered by dummies.
a = torch.tensor([1.0 + rank], dtype=torch.double, requires_grad=True)
handle = comm.Isend(a, right, 0)
buffer = JoinDummies(torch.empty_like(a), [handle.dummy])
b = comm.Recv(buffer, left, 0)
sent = comm.Wait(JoinDummiesHandle(handle, [b]))
total = JoinDummies(a + b, [sent])
total.square().sum().backward()
print(f"rank {rank}: sum {total.item():.1f}, gradient {a.grad.item():.1f}", flush=True)
