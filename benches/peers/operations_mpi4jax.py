"""mpi4jax in benches/operations: its operations under jit, on doubles, in the same sizes.

mpi4jax has no adjoint for most operations. That of its allreduce is the identity, for an objective that
is counted once; here the cotangents are summed by another allreduce, so that it is the adjoint that
this crate and mpi4torch have.
"""

import os

from mpi4py import MPI

world = MPI.COMM_WORLD
# One core for each rank, from the start: XLA makes as many threads as it may use cores.
os.sched_setaffinity(0, {world.rank % os.cpu_count()})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import mpi4jax  # noqa: E402
import numpy as np  # noqa: E402
import turns  # noqa: E402

jax.config.update("jax_enable_x64", True)

ROOT = 0
TAG = 1


def random(*shape):
    return jnp.asarray(np.random.default_rng(world.rank).random(shape))


def called(function, *arguments):
    """Compiles the function; returns one that waits for its results."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def all_reduce(x):
    return mpi4jax.allreduce(x, op=MPI.SUM, comm=world)


def sendrecv(x):
    partner = world.rank ^ 1
    return mpi4jax.sendrecv(x, x, partner, partner, sendtag=TAG, recvtag=TAG, comm=world)


def forward_only(count):
    """The operations without an adjoint, each with the shape of its argument."""
    size = world.size
    block = max(1, count // size)
    whole = (size, block)
    return {
        "reduce": (lambda x: mpi4jax.reduce(x, op=MPI.SUM, root=ROOT, comm=world), (count,)),
        "broadcast": (lambda x: mpi4jax.bcast(x, root=ROOT, comm=world), (count,)),
        "gather": (lambda x: mpi4jax.gather(x, root=ROOT, comm=world), (block,)),
        "all_gather": (lambda x: mpi4jax.allgather(x, comm=world), (block,)),
        "scatter": (
            lambda x: mpi4jax.scatter(x, root=ROOT, comm=world),
            whole if world.rank == ROOT else (block,),
        ),
        "all_to_all": (lambda x: mpi4jax.alltoall(x, comm=world), whole),
        "scan": (lambda x: mpi4jax.scan(x, op=MPI.SUM, comm=world), (count,)),
    }


def prepare(operation, way, bytes):
    if way != "blocking":
        return {}
    count = max(1, bytes // 8)
    if operation in ("all_reduce", "sendrecv"):
        call = all_reduce if operation == "all_reduce" else sendrecv
        if operation == "sendrecv" and world.size % 2 != 0:
            return {}
        x, cotangent = random(count), random(count)

        def pull_back(x, cotangent):
            y, pullback = jax.vjp(call, x)
            (gradient,) = pullback(cotangent)
            return y, all_reduce(gradient) if operation == "all_reduce" else gradient

        return {"forward": called(call, x), "both": called(pull_back, x, cotangent)}
    if operation in forward_only(count):
        call, shape = forward_only(count)[operation]
        return {"forward": called(call, random(*shape))}
    return {}


if __name__ == "__main__":
    turns.serve("mpi4jax", MPI.Get_library_version(), world.Barrier, prepare)
