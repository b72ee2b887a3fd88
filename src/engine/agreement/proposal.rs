//! [`Proposal`]: a started call that the ranks are agreeing on.

use super::saying::{Said, Says, Subject};
use super::terms::Terms;
use super::turn::{Pending, Turn};
use super::{Admission, in_step, mismatch, recorded};
use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::base::way::Way;
use crate::engine::communicator::Communicator;

/// A started call that the ranks are agreeing on: see [`Pending`].
///
/// If it is dropped before the call is launched, for instance because memory cannot be allocated,
/// the agreement goes on without a call. If all ranks have dropped theirs, they stay in step.
pub(crate) struct Proposal(Option<Inner>);

struct Inner {
    pending: Pending,
    said: Said,
}

impl Proposal {
    /// Begins to agree on a call that is started at `site`; `None` where calls are not compared.
    ///
    /// A rank whose own arguments are wrong gets its error at once; the others get, at their waits,
    /// an error that names this rank.
    pub(crate) fn begin(
        site: Site,
        comm: &Communicator,
        subject: Subject,
        terms: Result<Terms>,
    ) -> Result<Option<Self>> {
        comm.environment().allows(site.call)?;
        if comm.check_level() == Check::None {
            return terms.map(|_| None);
        }
        match comm.admission() {
            Some(Admission::Begun(begun)) => {
                let proposal = begun.lock().take();
                return terms.map(|_| proposal);
            }
            Some(Admission::Compared) => {
                let pending = Pending::compared(site, comm);
                let (terms, error) = match terms {
                    Ok(terms) => (Ok(terms.to_owned()), None),
                    Err(error) => (Err(error.to_string()), Some(error)),
                };
                let proposal =
                    Self(Some(Inner { pending, said: Said { site, subject: None, terms } }));
                // The others make the call. Dropping the proposal notes that this rank does not.
                return error.map_or(Ok(Some(proposal)), Err);
            }
            Some(Admission::Granted(_)) | None => (),
        }
        let terms = in_step(site, comm, terms);
        let subject = recorded(comm, subject, &terms);
        let says = Says { site, comm, subject, terms: &terms };
        let pending = Pending::new(site, comm, says.fingerprint(), says.balance(), Way::Polls);
        let (terms, error) = match terms {
            Ok(terms) => (Ok(terms.to_owned()), None),
            Err(error) => (Err(error.to_string()), Some(error)),
        };
        let said = Said { site, subject, terms };
        let proposal = Self(Some(Inner { pending, said }));
        match error {
            None => Ok(Some(proposal)),
            Some(error) => {
                comm.flights().refuse(proposal);
                Err(error)
            }
        }
    }

    /// Tells the others that this rank refuses the call that they start, unless calls are not
    /// compared. Returns the error.
    pub(crate) fn refuse(site: Site, comm: &Communicator, error: Error) -> Error {
        match Self::begin(site, comm, None, Err(error)) {
            Err(error) => error,
            Ok(_) => unreachable!("an error is never agreed on"),
        }
    }

    /// See [`Turn::seal`].
    pub(crate) fn seal(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.pending.seal())
    }

    /// The site of the call, and its communicator.
    pub(crate) fn origin(&self) -> Option<(Site, Communicator)> {
        self.0.as_ref().map(|inner| (inner.said.site, inner.pending.comm().clone()))
    }

    /// Goes on as far as possible without waiting.
    ///
    /// # Safety
    /// MPI can be called.
    pub(crate) unsafe fn poll(&mut self) -> Result<Option<Result<Turn>>> {
        let Some(Inner { pending, said }) = &mut self.0 else {
            unreachable!("a proposal is taken only when dropped")
        };
        // SAFETY: passed on to the caller.
        match unsafe { pending.poll(&mut || said.lines()) } {
            Ok(outcome) => Ok(outcome.map(|outcome| outcome.map_err(|texts| mismatch(&texts)))),
            Err(error) => {
                pending.give_up();
                Err(error)
            }
        }
    }
}

impl Drop for Proposal {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take().filter(|inner| !inner.pending.has_ended()) {
            let comm = inner.pending.comm().clone();
            comm.turns().withdraw(inner.pending.place());
            comm.flights().refuse(Self(Some(inner)));
        }
    }
}
