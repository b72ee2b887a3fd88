//! Calls whose counts or displacements do not fit an `int`, by MPI 4's functions with large counts,
//! such as `MPI_Gatherv_c`.

use mpi_sys::{MPI_Aint, MPI_Count, MPI_Datatype, MPI_Op};

use super::Made;
use super::buffers::{Buffers, mpi};
use super::message::Temporary;
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::call::blocks::Parts;
use crate::environment::error_code::checked;

/// Parts as the functions with large counts take them.
struct Wide {
    counts: *const MPI_Count,
    displacements: *const MPI_Aint,
}

impl Wide {
    fn of(made: &mut Made, parts: &Parts) -> Self {
        let address = |&start: &i64| MPI_Aint::try_from(start).unwrap_or(MPI_Aint::MAX);
        Self {
            counts: made.keep(parts.counts.clone()),
            displacements: made.keep(parts.displacements.iter().map(address).collect()),
        }
    }
}

/// Calls `MPI_Alltoallv_c`, with which each rank sends the same elements to all. `MPI_Allgatherv_c`
/// of MPICH 4.0.2 had not returned after 150 s, on 2 ranks with parts of more than 2³¹ bytes; the
/// other functions here do return.
pub(super) fn all_gather(buffers: &Buffers, made: &mut Made, parts: &Parts) -> Result<()> {
    let size = parts.counts.len();
    let same = Parts { counts: vec![buffers.count; size], displacements: vec![0; size] };
    all_to_all(buffers, made, &same, parts)
}

pub(super) fn gather(buffers: &Buffers, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
    let Buffers { send, receive, count, datatype, context, .. } = *buffers;
    let wide = Wide::of(made, parts);
    mpi!(
        made,
        MPI_Gatherv_c
            | MPI_Igatherv_c(
                send,
                count,
                datatype,
                receive,
                wide.counts,
                wide.displacements,
                datatype,
                root,
                context,
            )
    )
}

pub(super) fn scatter(buffers: &Buffers, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
    let Buffers { send, receive, datatype, context, .. } = *buffers;
    let wide = Wide::of(made, parts);
    let count = parts.counts[index(buffers.rank)];
    mpi!(
        made,
        MPI_Scatterv_c
            | MPI_Iscatterv_c(
                send,
                wide.counts,
                wide.displacements,
                datatype,
                receive,
                count,
                datatype,
                root,
                context,
            )
    )
}

pub(super) fn all_to_all(
    buffers: &Buffers,
    made: &mut Made,
    sent: &Parts,
    received: &Parts,
) -> Result<()> {
    let Buffers { send, receive, datatype, context, .. } = *buffers;
    let (from, to) = (Wide::of(made, sent), Wide::of(made, received));
    mpi!(
        made,
        MPI_Alltoallv_c
            | MPI_Ialltoallv_c(
                send,
                from.counts,
                from.displacements,
                datatype,
                receive,
                to.counts,
                to.displacements,
                datatype,
                context,
            )
    )
}

pub(super) fn reduce_scatter(
    buffers: &Buffers,
    made: &mut Made,
    parts: &Parts,
    op: MPI_Op,
) -> Result<()> {
    let Buffers { send, receive, datatype, context, .. } = *buffers;
    let wide = Wide::of(made, parts);
    mpi!(
        made,
        MPI_Reduce_scatter_c
            | MPI_Ireduce_scatter_c(send, receive, wide.counts, datatype, op, context,)
    )
}

/// A datatype of `count` consecutive elements.
pub(super) fn elements(
    datatype: MPI_Datatype,
    _size: usize,
    count: i64,
    _largest: i32,
) -> Result<Temporary> {
    Temporary::new(|made| {
        // SAFETY: the element's datatype is valid; `made` is written before the return.
        unsafe { checked!(MPI_Type_contiguous_c(count, datatype, made)) }
    })
}
