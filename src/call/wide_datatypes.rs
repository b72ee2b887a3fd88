//! Calls whose counts or displacements do not fit an `int`, by MPI 3's functions.
//!
//! All but reductions become one `MPI_Alltoallw`. For each part it gets a derived datatype, which
//! describes the whole part and its place in the buffer, so that the count is 1 and the
//! displacement 0. A reduce-scatter becomes reductions to one rank after another, each in pieces.

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
    // Ranks other than the root receive nothing.
    let receive = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    all_to_all(buffers, made, &send, receive)
}

pub(super) fn scatter(buffers: &Buffers, made: &mut Made, parts: &Parts, root: Rank) -> Result<()> {
    let send = if buffers.rank == root { parts } else { &only(root, 0, parts.counts.len()) };
    let receive = only(root, parts.counts[index(buffers.rank)], parts.counts.len());
    all_to_all(buffers, made, send, &receive)
}

/// Parts of which only that of `rank` has elements: `count`, at the start of the buffer.
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
    // Datatypes may be freed as soon as the call has started (MPI 3.1, section 4.1.9).
    let (from, to) = (Datatypes::of(buffers, sent)?, Datatypes::of(buffers, received)?);
    // Zero, as the datatypes describe the places of the parts.
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

/// Copies the part that the rank sends to itself, which the call then leaves out: if it has 2³¹
/// bytes, Open MPI 4.1.4 never returns from the call.
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

/// A datatype for each part of another rank that is not empty, freed when this is dropped; and the
/// counts, 1 for these parts and 0 for the others.
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

/// A datatype of `count` elements, from the element `displacement` of the buffer on.
fn part(buffers: &Buffers, displacement: i64, count: i64) -> Result<Temporary> {
    let whole = elements(buffers.datatype, buffers.size, count, buffers.largest)?;
    Temporary::structure([(1, address(displacement, buffers.size), whole.0)])
}

/// A datatype of `count` consecutive elements: as many blocks of `largest` elements as fit, and the
/// remainder.
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

/// The number of bytes before an element.
fn address(element: i64, size: usize) -> MPI_Aint {
    let element = MPI_Aint::try_from(element).unwrap_or(MPI_Aint::MAX);
    element.saturating_mul(size.cast_signed())
}

/// A number of blocks, or of elements in the remainder, which fits.
fn as_int(count: i64) -> c_int {
    c_int::try_from(count).unwrap_or(c_int::MAX)
}
