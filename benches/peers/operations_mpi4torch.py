"""mpi4torch in benches/operations: its operations on doubles, in the same sizes, forward, backward of a
graph that is kept, and both, from a given cotangent.

Its reduce and broadcast work in place, and so on a copy here, as an input that requires grad is not
changed in place.
"""

import os

import mpi4py

# mpi4torch itself starts MPI, with the thread level that it needs.
mpi4py.rc.initialize = False

import mpi4torch  # noqa: E402
import torch  # noqa: E402
import turns  # noqa: E402
from mpi4py import MPI  # noqa: E402

ROOT = 0
TAG = 1
comm = mpi4torch.COMM_WORLD
torch.set_num_threads(1)
torch.manual_seed(comm.rank)


def exchange(x):
    """A message to and from a partner, both started; the dummies order the backward pass."""
    partner = comm.rank ^ 1
    sending = comm.Isend(x, partner, TAG)
    buffer = mpi4torch.JoinDummies(torch.empty_like(x), [sending.dummy])
    received = comm.Wait(comm.Irecv(buffer, partner, TAG))
    sent = comm.Wait(mpi4torch.JoinDummiesHandle(sending, [received]))
    return mpi4torch.JoinDummies(received, [sent])


def operations(count):
    """Each with the shape of its argument."""
    size = comm.size
    block = max(1, count // size)
    return {
        "all_reduce": (lambda x: comm.Allreduce(x, mpi4torch.MPI_SUM), (count,)),
        "reduce": (lambda x: comm.Reduce_(x.clone(), mpi4torch.MPI_SUM, ROOT), (count,)),
        "broadcast": (lambda x: comm.Bcast_(x.clone(), ROOT), (count,)),
        "gather": (lambda x: comm.Gather(x, 0, ROOT), (block,)),
        "all_gather": (lambda x: comm.Allgather(x, 0), (block,)),
        "scatter": (lambda x: comm.Scatter(x, 0, block, ROOT), (block * size,)),
        "all_to_all": (lambda x: comm.Alltoall(x, 0, 1, 1), (1, size, block)),
    }


def prepare(operation, way, bytes):
    count = max(1, bytes // 8)
    if (operation, way) == ("sendrecv", "started") and comm.size % 2 == 0:
        call, shape = exchange, (count,)
    elif way == "blocking" and operation in operations(count):
        call, shape = operations(count)[operation]
    else:
        return {}
    x = torch.rand(shape, dtype=torch.float64)
    variable = x.clone().requires_grad_()
    kept = call(variable)
    cotangent = torch.rand_like(kept)

    def forward():
        with torch.no_grad():
            call(x)

    def backward():
        torch.autograd.grad(kept, variable, cotangent, retain_graph=True)

    def both():
        torch.autograd.grad(call(variable), variable, cotangent)

    return {"forward": forward, "backward": backward, "both": both}


if __name__ == "__main__":
    turns.serve("mpi4torch", MPI.Get_library_version(), MPI.COMM_WORLD.Barrier, prepare)
    # Not by Python's own end: nothing is left to do.
    MPI.Finalize()
    os._exit(0)
