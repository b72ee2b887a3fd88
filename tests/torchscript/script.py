"""Writes the modules that the tests load to the current folder.

They were made with PyTorch 2.11.0, without MPI and without the crate. As PyTorch stores the path of
this file in them, it was run in this folder, by a relative path:

    python -c "exec(compile(open('script.py').read(), 'script.py', 'exec'))"

The schemas are those of mpi4tch::torchscript::schemas(); a test compares them.
"""

from typing import Optional

import torch

SCHEMAS = """
all_reduce(Tensor x, str op, int? communicator=None) -> Tensor
reduce(Tensor x, str op, int root, int? communicator=None) -> Tensor
broadcast(Tensor x, int root, int? communicator=None) -> Tensor
gather(Tensor x, int axis, int root, int? communicator=None) -> Tensor
gather_with_counts(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> Tensor
scatter(Tensor x, int axis, int counts, int root, int? communicator=None) -> Tensor
scatter.list(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> Tensor
all_gather(Tensor x, int axis, int? communicator=None) -> Tensor
all_gather_with_counts(Tensor x, int axis, int[] counts, int? communicator=None) -> Tensor
reduce_scatter(Tensor x, int axis, int counts, str op, int? communicator=None) -> Tensor
reduce_scatter.list(Tensor x, int axis, int[] counts, str op, int? communicator=None) -> Tensor
all_to_all(Tensor x, int gather_axis, int scatter_axis, int counts, int? communicator=None) -> Tensor
all_to_all.list(Tensor x, int gather_axis, int scatter_axis, int[] counts, int? communicator=None) -> Tensor
all_to_all_with_counts(Tensor x, int gather_axis, int[] gather_counts, int scatter_axis, int[] scatter_counts, int? communicator=None) -> Tensor
all_to_all_v(Tensor x, int axis, int[] send, int? communicator=None) -> Tensor
all_to_all_v_with_counts(Tensor x, int axis, int[] send, int[] receive, int? communicator=None) -> Tensor
scan(Tensor x, str op, int? communicator=None) -> Tensor
exscan(Tensor x, str op, int? communicator=None) -> Tensor
max_loc(Tensor x, int? communicator=None) -> (Tensor, Tensor)
min_loc(Tensor x, int? communicator=None) -> (Tensor, Tensor)
barrier(int? communicator=None) -> ()
send(Tensor x, int dest, int tag, int? communicator=None) -> Tensor
recv(Tensor like, int? source, int? tag, int? communicator=None) -> Tensor
sendrecv(Tensor x, int dest, Tensor like, int? source, int tag, int? communicator=None) -> Tensor
iall_reduce(Tensor x, str op, int? communicator=None) -> int
ireduce(Tensor x, str op, int root, int? communicator=None) -> int
ibroadcast(Tensor x, int root, int? communicator=None) -> int
igather(Tensor x, int axis, int root, int? communicator=None) -> int
igather_with_counts(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> int
iscatter(Tensor x, int axis, int counts, int root, int? communicator=None) -> int
iscatter.list(Tensor x, int axis, int[] counts, int root, int? communicator=None) -> int
iall_gather(Tensor x, int axis, int? communicator=None) -> int
iall_gather_with_counts(Tensor x, int axis, int[] counts, int? communicator=None) -> int
ireduce_scatter(Tensor x, int axis, int counts, str op, int? communicator=None) -> int
ireduce_scatter.list(Tensor x, int axis, int[] counts, str op, int? communicator=None) -> int
iall_to_all(Tensor x, int gather_axis, int scatter_axis, int counts, int? communicator=None) -> int
iall_to_all.list(Tensor x, int gather_axis, int scatter_axis, int[] counts, int? communicator=None) -> int
iall_to_all_with_counts(Tensor x, int gather_axis, int[] gather_counts, int scatter_axis, int[] scatter_counts, int? communicator=None) -> int
iall_to_all_v(Tensor x, int axis, int[] send, int? communicator=None) -> int
iall_to_all_v_with_counts(Tensor x, int axis, int[] send, int[] receive, int? communicator=None) -> int
iscan(Tensor x, str op, int? communicator=None) -> int
iexscan(Tensor x, str op, int? communicator=None) -> int
ibarrier(int? communicator=None) -> int
isend(Tensor x, int dest, int tag, int? communicator=None) -> int
irecv(Tensor like, int? source, int? tag, int? communicator=None) -> int
wait(int request) -> Tensor
drop_request(int request) -> ()
rank(int? communicator=None) -> int
size(int? communicator=None) -> int
proc_null() -> int
join_dummies(Tensor x, Tensor[] dummies) -> Tensor
"""

library = torch.library.Library("mpi4tch", "FRAGMENT")
for schema in SCHEMAS.strip().splitlines():
    library.define(schema, alias_analysis="CONSERVATIVE")


class Operations(torch.nn.Module):
    """A method for each operation, of its name; for an overload, `name_overload`."""


class Regression(torch.nn.Module):
    """The mean over all ranks of their squared errors, with rank 0's parameters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.double))
        self.bias = torch.nn.Parameter(torch.zeros(1, dtype=torch.double))

    def forward(self, x: torch.Tensor, y: torch.Tensor, communicator: Optional[int] = None):
        weight = torch.ops.mpi4tch.broadcast(self.weight, 0, communicator)
        bias = torch.ops.mpi4tch.broadcast(self.bias, 0, communicator)
        error = (x @ weight + bias - y).square().mean()
        ranks = torch.ops.mpi4tch.size(communicator)
        # Every rank has the sum as its loss, so it counts once per rank.
        return torch.ops.mpi4tch.all_reduce(error, "mean", communicator) / ranks


def source(schema: str) -> str:
    """A method that calls the operation."""
    parsed = torch._C.parse_schema(schema)
    parameters = "".join(
        f", {a.name}: {a.type.annotation_str}{' = None' if a.has_default_value() else ''}"
        for a in parsed.arguments
    )
    arguments = ", ".join(a.name for a in parsed.arguments)
    name = "_".join(filter(None, [parsed.name, parsed.overload_name]))
    return (
        f"def {name}(self{parameters}):\n"
        f"    return torch.ops.mpi4tch.{parsed.name}({arguments})\n"
    )


PROGRAMS = """
def repeated(self, x: Tensor):
    a = torch.ops.mpi4tch.all_reduce(x, "sum")
    b = torch.ops.mpi4tch.all_reduce(x, "sum")
    torch.ops.mpi4tch.all_reduce(x, "sum")
    return a + 2 * b

def overlapped(self, x: Tensor, communicator: Optional[int] = None):
    request = torch.ops.mpi4tch.iall_reduce(x, "sum", communicator)
    meanwhile = x.square()
    return torch.ops.mpi4tch.wait(request) * meanwhile
"""

# For the tests in src/autograd/dispatcher.rs.
library.define("test(Tensor[] tensors, int? number, str text) -> int", alias_analysis="CONSERVATIVE")
TEST = """
def forward(self, tensors: List[Tensor], number: Optional[int], text: str):
    return torch.ops.mpi4tch.test(tensors, number, text)
"""

if __name__ == "__main__":
    torch.jit.script(Regression()).save("regression.pt")
    operations = torch.jit.script(Operations())
    for schema in SCHEMAS.strip().splitlines():
        operations.define(source(schema))
    operations.define(PROGRAMS)
    operations.save("operations.pt")
    test = torch.jit.script(torch.nn.Module())
    test.define(TEST)
    test.save("test.pt")
