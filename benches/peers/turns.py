"""The side of a peer's ranks: prepares and times what the driver of benches/operations asks for. The
lines of JSON are those of benches/operations/protocol.rs.
"""

import json
import os
import socket
import time

DIRECTIONS = ("forward", "backward", "both")


def measure(call, calls, warms, barrier):
    """The microseconds of a call; after one that is not counted if it `warms` up, as this rank has slept."""
    if warms:
        call()
    barrier()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) * 1e6 / calls


def serve(name, library, barrier, prepare):
    """Serves the driver until it closes the connection. `prepare` returns, for an operation, a way and a
    number of bytes, functions for some of the directions."""
    with socket.socket(socket.AF_UNIX) as driver:
        driver.connect(os.environ["MPI4TCH_BENCH_SOCKET"])
        lines = driver.makefile("rw")

        def answer(**content):
            lines.write(json.dumps(content) + "\n")
            lines.flush()

        answer(Ready=library)
        works = {}
        for line in lines:
            order = json.loads(line)
            try:
                if "Prepare" in order:
                    # The memory of the case before is free for this one.
                    works.clear()
                    works.update(prepare(**order["Prepare"]))
                    answer(Prepared={direction: [name] for direction in works})
                else:
                    turn = order["Turn"]
                    answer(Time=measure(works[turn["direction"]], turn["calls"], turn["warms"], barrier))
            except Exception as error:
                answer(Error=f"{type(error).__name__}: {error}")
                raise
