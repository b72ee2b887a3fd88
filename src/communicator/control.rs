//! What ranks tell each other for the crate's own purposes.

use std::time::{Duration, Instant};

use super::{Communicator, index};
use crate::error::{Error, Result, check};

impl Communicator {
    /// Waits until every rank of the program is here, and calls `impatient` once if that takes
    /// longer than `patience`. Collective over all of them.
    ///
    /// By MPI's own communicator: on this crate's, ranks may have started different calls.
    pub(crate) fn meet(&self, patience: Duration, impatient: impl FnOnce()) -> Result<()> {
        let mut request = mpi_sys::MPI_REQUEST_NULL;
        {
            let _guard = self.environment().enter("barrier")?;
            // SAFETY: MPI is there, as `enter` gave leave.
            check("MPI_Ibarrier", unsafe {
                mpi_sys::MPI_Ibarrier(mpi_sys::MPI_COMM_WORLD, &mut request)
            })?;
        }
        let start = Instant::now();
        let mut impatient = Some(impatient);
        loop {
            let mut done = 0;
            {
                let _guard = self.environment().enter("barrier")?;
                // SAFETY: the request is the barrier's, and `done` outlives the call.
                check("MPI_Test", unsafe {
                    mpi_sys::MPI_Test(&mut request, &mut done, mpi_sys::MPI_STATUS_IGNORE)
                })?;
            }
            if done != 0 {
                return Ok(());
            }
            let waited = start.elapsed();
            if waited > patience
                && let Some(impatient) = impatient.take()
            {
                impatient();
            }
            std::thread::sleep(Duration::from_micros(100).min(waited));
        }
    }

    /// Every rank's words, by the control context. Collective.
    pub(crate) fn all_gather_control<const N: usize>(
        &self,
        call: &'static str,
        words: &[i64; N],
    ) -> Result<Vec<[i64; N]>> {
        let _guard = self.environment().enter(call)?;
        let mut all = vec![[0; N]; index(self.size())];
        let count = i32::try_from(N).unwrap_or(i32::MAX);
        // SAFETY: `N` integers are sent, and `all` has room for as many per rank.
        check("MPI_Allgather", unsafe {
            mpi_sys::MPI_Allgather(
                words.as_ptr().cast(),
                count,
                mpi_sys::MPI_INT64_T,
                all.as_mut_ptr().cast(),
                count,
                mpi_sys::MPI_INT64_T,
                self.inner.node.control,
            )
        })?;
        Ok(all)
    }

    /// The bits that are set on every rank, by the control context. Collective.
    pub(super) fn intersect_control(&self, call: &'static str, bits: &mut [u64]) -> Result<()> {
        let _guard = self.environment().enter(call)?;
        let count = i32::try_from(bits.len()).map_err(|_| Error::Exchange { call })?;
        // SAFETY: `bits` has `count` words on every rank; each is combined in its place.
        check("MPI_Allreduce", unsafe {
            mpi_sys::MPI_Allreduce(
                mpi_sys::MPI_IN_PLACE,
                bits.as_mut_ptr().cast(),
                count,
                mpi_sys::MPI_UINT64_T,
                mpi_sys::MPI_BAND,
                self.inner.node.control,
            )
        })
    }

    /// Every rank's `bytes`, in order of the ranks, by the control context. They may differ in
    /// length. Collective.
    pub(crate) fn exchange(&self, call: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        let _guard = self.environment().enter(call)?;
        // A negative count tells every rank that this one has too much.
        let count = i32::try_from(bytes.len()).unwrap_or(-1);
        let mut counts = vec![0_i32; index(self.size())];
        // SAFETY: one int is sent, and `counts` has room for one per rank.
        check("MPI_Allgather", unsafe {
            mpi_sys::MPI_Allgather(
                (&raw const count).cast(),
                1,
                mpi_sys::MPI_INT,
                counts.as_mut_ptr().cast(),
                1,
                mpi_sys::MPI_INT,
                self.inner.node.control,
            )
        })?;
        let mut displacements = Vec::with_capacity(counts.len());
        let mut total = 0_i32;
        for &count in &counts {
            displacements.push(total);
            total = (count >= 0)
                .then(|| total.checked_add(count))
                .flatten()
                .ok_or(Error::Exchange { call })?;
        }
        // One byte more each: the pointer of an empty slice can be MPI_IN_PLACE.
        let bytes = [bytes, &[0]].concat();
        let mut all = vec![0_u8; total.unsigned_abs() as usize + 1];
        // SAFETY: `count` bytes are sent; `all` has room for the sum of the counts, each at its
        // displacement.
        check("MPI_Allgatherv", unsafe {
            mpi_sys::MPI_Allgatherv(
                bytes.as_ptr().cast(),
                count,
                mpi_sys::MPI_BYTE,
                all.as_mut_ptr().cast(),
                counts.as_ptr(),
                displacements.as_ptr(),
                mpi_sys::MPI_BYTE,
                self.inner.node.control,
            )
        })?;
        let mut rest = all.as_slice();
        Ok(counts
            .iter()
            .map(|count| {
                let (head, tail) = rest.split_at(count.unsigned_abs() as usize);
                rest = tail;
                head.to_vec()
            })
            .collect())
    }
}
