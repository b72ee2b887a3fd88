//! Calls whose counts or displacements an `int` cannot hold, with the functions of MPI 3.
//!
//! Data that only moves goes by one `MPI_Alltoallw`, in which a datatype made for the purpose
//! describes each part with its place in the buffer, so that its count is 1. A reduction to all
//! ranks in parts becomes one reduction to each, in pieces.

use std::ffi::c_int;

use mpi_sys::{MPI_Aint, MPI_Datatype, MPI_Op};

use super::Made;
use super::buffers::{Buffers, LARGEST_REDUCED, mpi, pieces};
use super::message::Temporary;
use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::call::blocks::Parts;
use crate::environment::error_code::checked;

pub(super) fn all_gather(buffers: &Buffers, made: &mut Made, parts: &Parts) -> Result<()> {
    let size = parts.counts.len();
    let same = Parts { counts: vec![buffers.count; size], displacements: vec![0; size] };
    all_to_all(buffers, made, &same, parts)
}

pub(super) fn gather(buffers: &Buffers, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
    let send = only(root, buffers.count, parts.counts.len());
    // A buffer that is not the root's receives nothing.
    let receive = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    all_to_all(buffers, made, &send, receive)
}

pub(super) fn scatter(buffers: &Buffers, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
    let send = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    let receive = only(root, parts.counts[index(buffers.rank)], parts.counts.len());
    all_to_all(buffers, made, send, &receive)
}

/// One part of `count` elements, for `rank`.
fn only(rank: Rank, count: i64, size: usize) -> Parts {
    let mut counts = vec![0; size];
    counts[index(rank)] = count;
    Parts { counts, displacements: vec![0; size] }
}

pub(super) fn all_to_all(
    buffers: &Buffers,
    made: &mut Made,
    sent: &Parts,
    received: &Parts,
) -> Result<()> {
    let Buffers { send, receive, context, .. } = *buffers;
    copy_own(buffers, sent, received);
    // They may be freed as soon as the call has started (MPI 3.1, section 4.1.9).
    let (from, to) = (Datatypes::of(buffers, sent)?, Datatypes::of(buffers, received)?);
    // The datatypes say where the parts are.
    let displacements = made.keep(vec![0; from.counts.len()]);
    let (sent, sent_types) = (made.keep(from.counts.clone()), made.keep(from.handles()));
    let (received, received_types) = (made.keep(to.counts.clone()), made.keep(to.handles()));
    mpi!(
        made,
        MPI_Alltoallw
            | MPI_Ialltoallw(
                send,
                sent,
                displacements,
                sent_types,
                receive,
                received,
                displacements,
                received_types,
                context,
            )
    )
}

/// Copies what the rank sends to itself: with 2³¹ bytes of that, Open MPI 4.1.4 never returns.
fn copy_own(buffers: &Buffers, send: &Parts, receive: &Parts) {
    let own = index(buffers.rank);
    let bytes = |elements: i64| usize::try_from(elements).unwrap_or(0) * buffers.size;
    let from = buffers.send.cast::<u8>().wrapping_add(bytes(send.displacements[own]));
    let to = buffers.receive.cast::<u8>().wrapping_add(bytes(receive.displacements[own]));
    // SAFETY: both parts lie in their buffers, which do not overlap, and have this length.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes(receive.counts[own])) };
}

pub(super) fn reduce_scatter(
    buffers: &Buffers,
    made: &mut Made,
    parts: &Parts,
    op: MPI_Op,
) -> Result<()> {
    let Buffers { receive, datatype, size, context, .. } = *buffers;
    for (root, (&count, &displacement)) in (0..).zip(parts.counts.iter().zip(&parts.displacements))
    {
        let part =
            buffers.send.wrapping_byte_add(usize::try_from(displacement).unwrap_or(0) * size);
        for (start, length) in pieces(count, buffers.largest.min(LARGEST_REDUCED)) {
            let (part, receive) =
                (part.wrapping_byte_add(start * size), receive.wrapping_byte_add(start * size));
            mpi!(
                made,
                MPI_Reduce | MPI_Ireduce(part, receive, length, datatype, op, root, context,)
            )?;
        }
    }
    Ok(())
}

/// A datatype for each part of another rank's, freed with the list.
struct Datatypes {
    counts: Vec<c_int>,
    parts: Vec<Option<Temporary>>,
}

impl Datatypes {
    fn of(buffers: &Buffers, parts: &Parts) -> Result<Self> {
        let mut list = Self { counts: Vec::new(), parts: Vec::new() };
        for (rank, (&count, &displacement)) in
            (0..).zip(parts.counts.iter().zip(&parts.displacements))
        {
            let absent = count == 0 || rank == buffers.rank;
            list.counts.push(c_int::from(!absent));
            list.parts.push(if absent { None } else { Some(part(buffers, displacement, count)?) });
        }
        Ok(list)
    }

    fn handles(&self) -> Vec<MPI_Datatype> {
        self.parts
            .iter()
            .map(|part| part.as_ref().map_or(mpi_sys::MPI_BYTE, |part| part.0))
            .collect()
    }
}

/// `count` elements from the element `displacement` on.
fn part(buffers: &Buffers, displacement: i64, count: i64) -> Result<Temporary> {
    let whole = elements(buffers.datatype, buffers.size, count, buffers.largest)?;
    Temporary::structure([(1, address(displacement, buffers.size), whole.0)])
}

/// `count` elements one after another as one: as many blocks of the largest count as fit, and what
/// is left.
pub(super) fn elements(
    datatype: MPI_Datatype,
    size: usize,
    count: i64,
    largest: c_int,
) -> Result<Temporary> {
    let block = i64::from(largest);
    let (blocks, rest) = (count / block, count % block);
    let whole = Temporary::new(|made| {
        // SAFETY: the element's datatype is valid; `made` is written before the return.
        unsafe { checked!(MPI_Type_vector(as_int(blocks), largest, largest, datatype, made)) }
    })?;
    let end = address(blocks * block, size);
    Temporary::structure([(1, 0, whole.0), (as_int(rest), end, datatype)])
}

/// The bytes before an element.
fn address(element: i64, size: usize) -> MPI_Aint {
    let element = MPI_Aint::try_from(element).unwrap_or(MPI_Aint::MAX);
    element.saturating_mul(size.cast_signed())
}

/// The number of blocks of 2³¹, or what is left beside them.
fn as_int(count: i64) -> c_int {
    c_int::try_from(count).unwrap_or(c_int::MAX)
}
