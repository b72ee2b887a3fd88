"""The time of a forward step of the model in examples/shallow_water/model.rs, with mpi4jax: the same
equations and scheme, in double precision, with one exchange a step. Measured and printed as in
benches/shallow_water.rs.

scripts/bench_peers.sh runs it under mpiexec.
"""

import os
import statistics
import time

from mpi4py import MPI

RANKS = int(os.environ.get("MPI4TCH_BENCH_RANKS", "2"))
world = MPI.COMM_WORLD
# One core for each rank, from the start: XLA makes as many threads as it may use cores.
os.sched_setaffinity(0, {world.rank % os.cpu_count()})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import mpi4jax  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_enable_x64", True)

# Rows, columns, and steps of a run.
CASES = [(180, 360, 200), (720, 1440, 20)]
RUNS = 5

# The constants of model.rs.
LENGTHS = (1.8e6, 9e5)
DEPTH = 100.0
GRAVITY = 9.81
CORIOLIS = 2e-4
BETA = 2e-11
VISCOSITY = 1e-3 * CORIOLIS
WEIGHTS = (1.6, -0.6)

# The axes of stacked fields.
Y, X = -2, -1

grid = world.Create_cart(MPI.Compute_dims(world.size, 2), periods=[False, True])


def part(x, axis, start, end):
    """The cells from start to before end. An end that is not positive counts from the extent."""
    return jax.lax.slice_in_dim(x, start, end if end > 0 else x.shape[axis] + end, axis=axis)


def difference(x, axis):
    return part(x, axis, 1, 0) - part(x, axis, 0, -1)


def mean(x, axis):
    return (part(x, axis, 1, 0) + part(x, axis, 0, -1)) * 0.5


def inner(x, axis):
    return part(x, axis, 1, -1)


def but_first(x, axis):
    return part(x, axis, 1, 0)


def but_last(x, axis):
    return part(x, axis, 0, -1)


def extend(fields, axis):
    """Adds the neighbours' cells before the first and after the last, or zeros beyond a wall."""
    first, last = part(fields, axis, 0, 1), part(fields, axis, fields.shape[axis] - 1, 0)
    before, after = grid.Shift(axis + 2, 1)
    if before == after == grid.rank:
        return jnp.concatenate([last, fields, first], axis)

    def exchange(edge, source, dest):
        received = mpi4jax.sendrecv(edge, edge, source, dest, comm=grid)
        return received if source != MPI.PROC_NULL else jnp.zeros_like(edge)

    from_before, from_after = exchange(last, before, after), exchange(first, after, before)
    return jnp.concatenate([from_before, fields, from_after], axis)


class Model:
    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.dx, self.dy = LENGTHS[0] / columns, LENGTHS[1] / rows
        self.time_step = 0.125 * min(self.dx, self.dy) / (GRAVITY * DEPTH) ** 0.5
        starts = []
        for extent, ranks, place in zip((rows, columns), grid.dims, grid.coords):
            assert extent % ranks == 0, f"{extent} cells cannot be cut over {ranks} ranks"
            starts.append(extent // ranks * place)
        self.own_rows = slice(starts[0], starts[0] + rows // grid.dims[0])
        self.own_columns = slice(starts[1], starts[1] + columns // grid.dims[1])

    def initial_fields(self):
        y = (np.arange(self.rows) + 0.5) * self.dy
        jet = 10.0 * np.exp(-((y - 0.5 * LENGTHS[1]) ** 2) / (0.02 * LENGTHS[0]) ** 2)
        height = np.cumsum((CORIOLIS + BETA * y) * jet * (-self.dy / GRAVITY))
        height += DEPTH - height.mean()
        x = (np.arange(self.columns) + 0.5) * self.dx
        y, jet, height = (a[self.own_rows, None] for a in (y, jet, height))
        waves = np.sin(x[self.own_columns] * (10 * np.pi / LENGTHS[0]))
        waves = waves * np.cos(y * (8 * np.pi / LENGTHS[1]))
        zeros = np.zeros_like(waves)
        return jnp.asarray(np.stack([height + 0.2 * waves, jet + zeros, zeros]))

    def rates(self, fields):
        dx, dy = self.dx, self.dy
        h, u, v = fields
        flux_x = mean(h, X) * but_last(u, X)
        flux_y = mean(h, Y) * but_last(v, Y)
        h_rate = -difference(inner(flux_x, Y), X) / dx - difference(inner(flux_y, X), Y) / dy

        row = np.arange(self.own_rows.start, self.own_rows.stop + 1)[:, None]
        coriolis = CORIOLIS + BETA * dy * row
        vorticity = but_last(difference(v, X), Y) / dx - but_last(difference(u, Y), X) / dy
        q = (vorticity + coriolis) / mean(mean(h, X), Y)
        squares = but_first(mean(u * u, X), Y) + but_first(mean(v * v, Y), X)
        b = GRAVITY * but_first(but_first(h, X), Y) + 0.5 * squares
        u_rate = but_first(mean(q * mean(flux_y, X), Y), X) - but_last(difference(b, X), Y) / dx
        v_rate = -but_first(mean(q * mean(flux_x, Y), X), Y) - but_last(difference(b, Y), X) / dy

        def friction(x):
            along_x = inner(difference(difference(x, X), X), Y) / (dx * dx)
            along_y = inner(difference(difference(x, Y), Y), X) / (dy * dy)
            return (along_x + along_y) * (VISCOSITY * dx * dx)

        is_inside = row[:-1] < self.rows - 1
        return jnp.stack([h_rate, u_rate + friction(u), (v_rate + friction(v)) * is_inside])

    def run(self, fields, steps):
        def step(state, weights):
            fields, last = state
            rates = self.rates(extend(extend(fields, Y), X))
            change = weights[0] * rates + weights[1] * last
            return fields + change * self.time_step, rates

        state = step((fields, jnp.zeros_like(fields)), (1.0, 0.0))
        return jax.lax.fori_loop(1, steps, lambda _, state: step(state, WEIGHTS), state)[0]


def measure(rows, columns, steps):
    model = Model(rows, columns)
    initial = model.initial_fields()
    run = jax.jit(lambda fields: model.run(fields, steps))
    h, u, v = np.asarray(run(initial))
    energy = world.allreduce(0.5 * float(np.sum((u * u + v * v) * h)))
    times = []
    for _ in range(RUNS):
        world.Barrier()
        start = time.perf_counter()
        run(initial).block_until_ready()
        times.append((time.perf_counter() - start) * 1e3 / steps)
    times = [world.allreduce(t, MPI.MAX) for t in times]
    if world.rank == 0:
        step, least, case = statistics.median(times), min(times), f"{rows} x {columns}"
        print(
            f"{case:<14}{'mpi4jax':<28}{step:>9.2f} ms{least:>9.2f} ms    energy {energy:.12e}",
            flush=True,
        )


if __name__ == "__main__":
    if world.size != RANKS:
        raise SystemExit(
            f"{world.size} instead of {RANKS} ranks: the launcher must be of the MPI that mpi4py uses"
        )
    for case in CASES:
        measure(*case)
