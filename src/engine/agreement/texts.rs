//! The exchange of texts after the ranks have disagreed on a call: each rank sends its text to all
//! others.
//!
//! The texts are point-to-point messages because other exchanges may be under way in the control
//! context: a rank may have started several calls before it learns that the ranks disagree on the
//! first.

use std::ffi::c_int;

use mpi_sys::MPI_Request;

use crate::base::error::Result;
use crate::base::rank::{Rank, index};
use crate::base::tag::Tag;
use crate::engine::communicator::Communicator;
use crate::environment::error_code::checked;
use crate::environment::status::Status;

/// The most bytes of a text: few enough for the texts of all ranks to be under way at once.
pub(super) const LONGEST: usize = 2048;

/// An exchange of texts that is under way.
pub(super) struct Texts {
    /// This rank's text. MPI reads it, so it must not move.
    own: Box<[u8]>,
    tag: Tag,
    sends: Vec<MPI_Request>,
    came: Vec<Option<Vec<u8>>>,
}

impl Texts {
    /// Sends this rank's text to all others.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn send(comm: &Communicator, tag: Tag, mut own: Vec<u8>) -> Result<Self> {
        own.truncate(LONGEST);
        let mut texts =
            Self { tag, sends: Vec::new(), came: vec![None; index(comm.size())], own: own.into() };
        texts.came[index(comm.rank())] = Some(texts.own.to_vec());
        let length = c_int::try_from(texts.own.len()).unwrap_or(0);
        for rank in (0..comm.size()).filter(|&rank| rank != comm.rank()) {
            let mut request = mpi_sys::MPI_REQUEST_NULL;
            // SAFETY: the text has as many bytes, and stays as it is until the end.
            unsafe {
                checked!(MPI_Isend(
                    texts.own.as_ptr().cast(),
                    length,
                    mpi_sys::MPI_BYTE,
                    rank,
                    tag,
                    comm.control(),
                    &mut request,
                ))
            }?;
            texts.sends.push(request);
        }
        Ok(texts)
    }

    /// Receives the texts that have arrived. Returns the texts of all ranks once they are complete
    /// and this rank's own has been sent.
    ///
    /// # Safety
    /// MPI can be called.
    pub(super) unsafe fn poll(&mut self, comm: &Communicator) -> Result<Option<Vec<Vec<u8>>>> {
        for rank in 0..comm.size() {
            if self.came[index(rank)].is_none() {
                // SAFETY: passed on to the caller.
                self.came[index(rank)] = unsafe { receive(comm, rank, self.tag) }?;
            }
        }
        while let Some(request) = self.sends.last_mut() {
            let mut done = 0;
            // SAFETY: the request is of a send whose text is kept.
            unsafe { checked!(MPI_Test(request, &mut done, mpi_sys::MPI_STATUS_IGNORE)) }?;
            if done == 0 {
                return Ok(None);
            }
            self.sends.pop();
        }
        Ok(self.came.iter().cloned().collect())
    }
}

/// The text of `rank`, if it has arrived.
///
/// # Safety
/// MPI can be called.
unsafe fn receive(comm: &Communicator, rank: Rank, tag: Tag) -> Result<Option<Vec<u8>>> {
    let (mut found, mut message) = (0, mpi_sys::MPI_MESSAGE_NULL);
    let mut status = Status::none();
    // SAFETY: the context is a communicator; the others outlive the call.
    unsafe {
        checked!(MPI_Improbe(rank, tag, comm.control(), &mut found, &mut message, &mut status))
    }?;
    if found == 0 {
        return Ok(None);
    }
    let length = usize::try_from(Status::of(&status).bytes).unwrap_or(0);
    let mut text = vec![0_u8; length.max(1)];
    // SAFETY: `text` has room for the message, which has been looked at.
    unsafe {
        checked!(MPI_Mrecv(
            text.as_mut_ptr().cast(),
            c_int::try_from(length).unwrap_or(0),
            mpi_sys::MPI_BYTE,
            &mut message,
            mpi_sys::MPI_STATUS_IGNORE,
        ))
    }?;
    text.truncate(length);
    Ok(Some(text))
}

impl Drop for Texts {
    fn drop(&mut self) {
        if !self.sends.is_empty() {
            // MPI may still read the text.
            Box::leak(std::mem::take(&mut self.own));
        }
    }
}
