//! The sum of `MPI_Reduce_scatter(_block)` by `MPI_Alltoallv`: each rank receives its block of all
//! others, and adds them up.
//!
//! The volume is the same, but the library's own call takes longer, because its sum is slower, or
//! goes over memory more often. Measured on one machine with 2 cores, medians of 25 rounds in turns, in
//! µs, for blocks of so many bytes of doubles. `whole` sends the blocks at once, `pieces` a
//! [`PIECE`] of each at a time; `pairwise` is `MPI_Sendrecv` with each rank and `MPI_Reduce_local`:
//!
//! | | block | `_block` | `MPI_Reduce_scatter` | p `MPI_Reduce` | pairwise | whole | pieces |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | Open MPI 4.1.4, 2 ranks | 1 KiB | 1.0 | 1.0 | 1.3 | 0.9 | 0.9 | 0.9 |
//! | | 64 KiB | 14.0 | 13.9 | 14.3 | 8.5 | 8.4 | 8.4 |
//! | | 1 MiB | 380 | 234 | 262 | 117 | 107 | 106 |
//! | | 16 MiB | 24,349 | 20,563 | 7,254 | 4,844 | 4,356 | 4,010 |
//! | 4 ranks | 1 KiB | 9.7 | 9.9 | 16.8 | 12.5 | 6.9 | 7.0 |
//! | | 64 KiB | 88 | 83 | 95 | 65 | 59 | 58 |
//! | | 1 MiB | 2,480 | 1,295 | 2,105 | 957 | 1,029 | 975 |
//! | | 16 MiB | 99,020 | 104,233 | 60,157 | 24,856 | 21,640 | 18,258 |
//! | MPICH 4.0.2, 2 ranks | 1 KiB | 1.0 | 1.1 | 1.8 | 0.8 | 0.9 | 0.9 |
//! | | 64 KiB | 16.1 | 16.1 | 44.9 | 10.9 | 8.8 | 8.8 |
//! | | 1 MiB | 138 | 138 | 627 | 147 | 114 | 108 |
//! | | 16 MiB | 4,353 | 4,250 | 31,114 | 4,476 | 3,832 | 3,441 |
//!
//! Small blocks are left to the library, which needs fewer messages on many ranks, and so are blocks of
//! very different sizes, as the rank with the largest would receive much more than it sends.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::Range;

use tch::Kind;

use super::Made;
use super::buffers::{Buffers, as_int, mpi};
use crate::base::error::Result;
use crate::base::rank::index;
use crate::base::way::Way;
use crate::call::blocks::Parts;
use crate::call::buffer::Output;
use crate::environment::datatype::Datatype;

/// The bytes of the mean block from which on blocks are summed here.
const LEAST: usize = 4096;

/// The bytes of a block that a blocking call exchanges at a time, which are still in the processor's
/// cache when they are added up.
const PIECE: usize = 1 << 20;

impl Buffers {
    /// `MPI_Alltoallv` of the blocks, and their sum. The places of the parts fit an `int`.
    pub(super) fn sum_scatter(
        &self,
        made: &mut Made,
        parts: &Parts,
        summing: Summing,
    ) -> Result<()> {
        let rank = index(self.rank);
        let (own, longest) = (parts.counts[rank], parts.longest());
        let most = match made.way() {
            Way::Waits | Way::Pieces(_) => {
                longest.min(i64::try_from(PIECE / self.size).unwrap_or(1))
            }
            // In one piece, as nobody waits for the next one to be started.
            Way::Polls => longest,
        };
        let others = parts.counts.len() - 1;
        let shape = [i64::try_from(others).unwrap_or(0), own.min(most)];
        let received = Output::new("reduce_scatter", &shape, self.elements)?;
        let room = received.data();
        let mut start = 0;
        while start < longest {
            let piece = start..start + most;
            self.exchange_piece(made, parts, &piece, room)?;
            let place = |count: i64| usize::try_from(count).unwrap_or(0) * self.size;
            let terms = Terms {
                own: self.send.wrapping_byte_add(place(parts.displacements[rank] + start)),
                received: room,
                others,
                total: self.receive.wrapping_byte_add(place(start)),
                count: usize::try_from(length(own, &piece)).unwrap_or(0),
            };
            // SAFETY: the own part, the received ones and the result have so many elements of the
            // kind in their places, and are kept until the call has ended.
            let add = move || unsafe { terms.add(summing) };
            match made.way() {
                Way::Waits | Way::Pieces(_) => add(),
                Way::Polls => made.then(add),
            }
            start += most;
        }
        if made.way() == Way::Polls {
            made.keep(vec![received.into_tensor()]);
        }
        Ok(())
    }

    /// Exchanges this piece of each part with the other ranks.
    fn exchange_piece(
        &self,
        made: &mut Made,
        parts: &Parts,
        piece: &Range<i64>,
        received: *mut c_void,
    ) -> Result<()> {
        let Self { send, datatype, context, .. } = *self;
        let own = length(parts.counts[index(self.rank)], piece);
        let mut lists: [Vec<c_int>; 4] = Default::default();
        let mut place = 0;
        for (rank, (&count, &start)) in (0..).zip(parts.counts.iter().zip(&parts.displacements)) {
            let is_other = i64::from(rank != self.rank);
            let (sent, come) = (is_other * length(count, piece), is_other * own);
            let entries = [sent, start + piece.start.min(count), come, place];
            for (list, entry) in lists.iter_mut().zip(entries) {
                list.push(as_int(entry));
            }
            place += come;
        }
        let [sent, starts, come, places] = lists.map(|list| made.keep(list));
        mpi!(
            made,
            MPI_Alltoallv
                | MPI_Ialltoallv(
                    send, sent, starts, datatype, received, come, places, datatype, context,
                )
        )
    }
}

/// How many of `count` elements are in the piece.
fn length(count: i64, piece: &Range<i64>) -> i64 {
    (count.min(piece.end) - piece.start).max(0)
}

/// What is added up: blocks of `count` elements.
struct Terms {
    own: *const c_void,
    /// The blocks of the `others`, one after another.
    received: *const c_void,
    others: usize,
    total: *mut c_void,
    count: usize,
}

// SAFETY: whoever makes them keeps the memory behind the pointers while they are used, on any thread.
unsafe impl Send for Terms {}

impl Terms {
    /// # Safety
    /// The pointers are valid, `total` for writing, and the elements are of the kind.
    unsafe fn add(self, Summing { add, parts }: Summing) {
        // SAFETY: passed on to the caller.
        unsafe { add(&Self { count: self.count * parts, ..self }) };
    }
}

/// The addition of numbers of a kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summing {
    add: unsafe fn(&Terms),
    /// The parts of a number that are added by themselves.
    parts: usize,
}

impl Summing {
    /// How blocks like these are summed here; `None` if that is left to the library. The same on all
    /// ranks.
    pub(crate) fn of_blocks(parts: &Parts, datatype: Datatype) -> Option<Self> {
        let summing = Self::of(datatype.kind)?;
        let ranks = i64::try_from(parts.counts.len()).ok().filter(|&ranks| ranks > 1)?;
        let (mean, size) = (parts.end() / ranks, datatype.kind.elt_size_in_bytes());
        let is_worth_it = usize::try_from(mean).is_ok_and(|mean| mean * size >= LEAST);
        // So the places in the buffer that is received fit an int, too.
        let is_even = parts.longest() - mean <= mean / 2;
        (is_even && is_worth_it).then_some(summing)
    }

    /// `None` for kinds that MPI adds otherwise, or not at all.
    fn of(kind: Kind) -> Option<Self> {
        let (add, parts): (unsafe fn(&Terms), usize) = match kind {
            Kind::Uint8 | Kind::Int8 => (add::<u8>, 1),
            Kind::Int16 => (add::<u16>, 1),
            Kind::Int => (add::<u32>, 1),
            Kind::Int64 => (add::<u64>, 1),
            Kind::Float => (add::<f32>, 1),
            Kind::Double => (add::<f64>, 1),
            Kind::ComplexFloat => (add::<f32>, 2),
            Kind::ComplexDouble => (add::<f64>, 2),
            _ => return None,
        };
        Some(Self { add, parts })
    }
}

/// A number in memory, which torch need not align.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

trait Number: Copy {
    fn plus(self, other: Self) -> Self;
}

macro_rules! numbers {
    ($($number:ty: $plus:expr;)*) => {
        $(impl Number for $number {
            #[inline]
            fn plus(self, other: Self) -> Self {
                $plus(self, other)
            }
        })*
    };
}

// Integers wrap, as torch's do. The sum's bits do not depend on the sign.
numbers! {
    u8: u8::wrapping_add;
    u16: u16::wrapping_add;
    u32: u32::wrapping_add;
    u64: u64::wrapping_add;
    f32: std::ops::Add::add;
    f64: std::ops::Add::add;
}

/// Adds up the terms, a few numbers of all of them at a time, so that the sum stays in the cache.
///
/// # Safety
/// As for [`Terms::add`], with numbers of this type.
unsafe fn add<T: Number>(terms: &Terms) {
    const FEW: usize = 1024;
    for start in (0..terms.count).step_by(FEW) {
        let few = FEW.min(terms.count - start);
        let of = |block: *const c_void, place: usize| {
            // SAFETY: the numbers are within the block.
            unsafe { std::slice::from_raw_parts(block.cast::<Unaligned<T>>().add(place), few) }
        };
        let other = |i: usize| of(terms.received, i * terms.count + start);
        // SAFETY: as above, and the total is not read or written by anything else.
        let total = unsafe {
            let total = terms.total.cast::<MaybeUninit<Unaligned<T>>>().add(start);
            std::slice::from_raw_parts_mut(total, few)
        };
        let (own, first) = (of(terms.own, start), other(0));
        for (total, (own, first)) in total.iter_mut().zip(own.iter().zip(first)) {
            total.write(Unaligned(own.0.plus(first.0)));
        }
        for i in 1..terms.others {
            for (total, term) in total.iter_mut().zip(other(i)) {
                // SAFETY: it has been written above.
                let sum = unsafe { total.assume_init() };
                total.write(Unaligned(sum.0.plus(term.0)));
            }
        }
    }
}
