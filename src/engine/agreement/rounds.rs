//! A small all-reduce over the ranks of a communicator, which can be polled.
//!
//! `MPI_Allreduce` blocks, so nothing else can go on meanwhile, and it does not match
//! `MPI_Iallreduce`. With point-to-point messages, a rank that blocks and a rank that polls now and
//! then take part in the same exchange. In round k each rank sends its words to the rank 2ᵏ further
//! on, and keeps the larger of each word of its own and the word received. After ⌈log₂ p⌉ rounds it
//! has the maximum over all ranks; a maximum may include a rank twice (dissemination: Hensgen,
//! Finkel and Manber, "Two algorithms for barrier synchronization", 1988).
//!
//! A sum must include each rank once. Before round k a rank has the sum over a window: the 2ᵏ ranks
//! that end with itself, counted cyclically. It receives the sum over the 2ᵏ ranks before these,
//! and adds it for the next window. The number of ranks p is a sum of powers of two; the windows of
//! these lengths, laid end to end, cover every rank once, and `rest` is the sum over those so far.
//!
//! Measured on 2 ranks of one machine before each `MPI_Allreduce` of one double: 0.50 µs more with
//! Open MPI 4.1.4, 0.76 µs with MPICH 4.0.2; `MPI_Allreduce` of as many words 0.53 and 1.23 µs.

use std::ffi::c_int;

use mpi_sys::MPI_Request;

use crate::base::error::Result;
use crate::base::tag::Tag;
use crate::engine::communicator::Communicator;
use crate::environment::error_code::checked;

/// How many words are combined by their maximum.
pub(super) const WORDS: usize = 5;

/// The message of a rank in a round.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Payload {
    largest: [u64; WORDS],
    /// The sum over the 2ᵏ ranks up to this one, before round k.
    window: u64,
    /// The sum over the p mod 2ᵏ ranks up to this one, before round k.
    rest: u64,
}

/// An all-reduce that is under way, by messages in the control context.
pub(super) struct Rounds {
    /// The payload sent in this round, and the one received. MPI reads and writes them, so they
    /// must not move.
    payloads: Box<[Payload; 2]>,
    requests: [MPI_Request; 2],
    /// The distance in ranks to the receiver of this round; after the last round, at least the
    /// number of ranks.
    distance: i32,
    tag: Tag,
}

impl Rounds {
    /// For the maximum of each of the `words` and the sum of the `term`s. `tag` is the tag of the
    /// first round; each further round uses the next.
    pub(super) fn new(words: [u64; WORDS], term: u64, tag: Tag) -> Self {
        let requests = [mpi_sys::MPI_REQUEST_NULL; 2];
        let own = Payload { largest: words, window: term, rest: 0 };
        Self { payloads: Box::new([own, Payload::default()]), requests, distance: 1, tag }
    }

    fn are_under_way(&self) -> bool {
        self.requests.iter().any(|&request| request != mpi_sys::MPI_REQUEST_NULL)
    }

    /// Goes on as far as possible without waiting. Returns the maxima and the sum after the last
    /// round.
    ///
    /// # Safety
    /// MPI can be called.
    #[inline]
    pub(super) unsafe fn poll(
        &mut self,
        comm: &Communicator,
    ) -> Result<Option<([u64; WORDS], u64)>> {
        while self.distance < comm.size() {
            if !self.are_under_way() {
                // SAFETY: passed on to the caller.
                unsafe { self.begin_round(comm) }?;
            }
            let mut done = 0;
            // SAFETY: both requests are of this round, whose words stay in place.
            unsafe {
                checked!(MPI_Testall(
                    2,
                    self.requests.as_mut_ptr(),
                    &mut done,
                    mpi_sys::MPI_STATUSES_IGNORE,
                ))
            }?;
            if done == 0 {
                return Ok(None);
            }
            let [own, came] = &mut *self.payloads;
            own.take(came, comm.size() & self.distance != 0);
            self.distance *= 2;
            self.tag += 1;
        }
        let Payload { largest, window, rest } = self.payloads[0];
        // The last window has all ranks if their number is a power of two.
        Ok(Some((largest, if comm.size() == self.distance { window } else { rest })))
    }

    /// # Safety
    /// MPI can be called.
    unsafe fn begin_round(&mut self, comm: &Communicator) -> Result<()> {
        let (rank, size, context) = (comm.rank(), comm.size(), comm.control());
        let (to, from) = ((rank + self.distance) % size, (rank + size - self.distance) % size);
        let bytes = c_int::try_from(size_of::<Payload>()).unwrap_or(c_int::MAX);
        let [own, came] = &mut *self.payloads;
        // SAFETY: `came` has room for as many bytes, and stays in place until the end.
        unsafe {
            checked!(MPI_Irecv(
                std::ptr::from_mut(came).cast(),
                bytes,
                mpi_sys::MPI_BYTE,
                from,
                self.tag,
                context,
                &mut self.requests[0],
            ))
        }?;
        // SAFETY: `own` has as many bytes, and stays as it is until the end.
        unsafe {
            checked!(MPI_Isend(
                std::ptr::from_ref(own).cast(),
                bytes,
                mpi_sys::MPI_BYTE,
                to,
                self.tag,
                context,
                &mut self.requests[1],
            ))
        }
    }
}

impl Payload {
    /// Combines this payload with the one received, which is from the rank one window's length
    /// back. `counts` tells whether that length is one of the powers of two that the number of
    /// ranks is the sum of.
    fn take(&mut self, came: &Self, counts: bool) {
        for (word, other) in self.largest.iter_mut().zip(&came.largest) {
            *word = (*word).max(*other);
        }
        if counts {
            self.rest = self.window.wrapping_add(came.rest);
        }
        self.window = self.window.wrapping_add(came.window);
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        if self.are_under_way() {
            // MPI may still read and write the payloads.
            Box::leak(std::mem::take(&mut self.payloads));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All ranks' messages after all rounds.
    fn after_all_rounds(size: usize) -> Vec<Payload> {
        let term = |rank: usize| 1_u64 << rank;
        let first = |rank| Payload { largest: [rank as u64; WORDS], window: term(rank), rest: 0 };
        let mut all: Vec<Payload> = (0..size).map(first).collect();
        let mut distance = 1;
        while distance < size {
            let before = all.clone();
            for (rank, own) in all.iter_mut().enumerate() {
                own.take(&before[(rank + size - distance) % size], size & distance != 0);
            }
            distance *= 2;
        }
        all
    }

    #[test]
    fn every_rank_is_counted_once() {
        for size in 1..40 {
            for payload in after_all_rounds(size) {
                let sum = if size.is_power_of_two() { payload.window } else { payload.rest };
                assert_eq!(sum, (1 << size) - 1, "{size} ranks");
                assert_eq!(payload.largest, [size as u64 - 1; WORDS]);
            }
        }
    }
}
