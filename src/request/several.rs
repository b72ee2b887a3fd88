//! Waiting for several requests.

use tch::Tensor;

use super::Request;
use crate::error::{Error, Result};
use crate::site::Site;

/// Waits for all requests, and returns their results in order.
///
/// Wraps `MPI_Waitall`. All are waited for, also where one fails.
///
/// # Errors
/// The first of those of [`Request::wait`].
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = Tensor::from_slice(&[1.0]);
/// let results = mpi4tch::wait_all([world.iall_reduce(&x, Op::Sum)?, world.iscan(&x, Op::Sum)?])?;
/// assert_eq!(results.len(), 2);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Waitall")]
#[track_caller]
pub fn wait_all(requests: impl IntoIterator<Item = Request>) -> Result<Vec<Tensor>> {
    let site = Site::new("wait_all");
    let results: Vec<_> =
        requests.into_iter().map(|request| request.complete(site, None)).collect();
    results.into_iter().collect()
}

/// Waits for one of the requests, and takes it out: its place, and its result.
///
/// Wraps `MPI_Waitany`. Which one it is may differ from rank to rank: messages may be waited for
/// so, but not operations of all ranks that are to be differentiated, as their adjoints are
/// carried out in the order of the waits. A [`Tape`](crate::Tape) notices.
///
/// # Errors
/// [`Error::Argument`] if there are no requests; those of [`Request::wait`] for the one that
/// failed, which is taken out as well.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let mut requests = vec![universe.world().iall_reduce(&Tensor::from_slice(&[1.0]), Op::Sum)?];
/// let (place, _result) = mpi4tch::wait_any(&mut requests)?;
/// assert_eq!((place, requests.len()), (0, 0));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Waitany")]
#[track_caller]
pub fn wait_any(requests: &mut Vec<Request>) -> Result<(usize, Tensor)> {
    let site = Site::new("wait_any");
    let place = ended(site, requests)?[0];
    Ok((place, requests.remove(place).complete(site, None)?))
}

/// Waits for at least one of the requests, and takes out all that have ended: their places, in
/// order, and their results.
///
/// Wraps `MPI_Waitsome`; else as [`wait_any`]. Where some fail and others do not, those that fail
/// stay, and are an error when they are waited for again.
///
/// # Errors
/// As for [`wait_any`].
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let mut requests = vec![universe.world().iall_reduce(&Tensor::from_slice(&[1.0]), Op::Sum)?];
/// let done = mpi4tch::wait_some(&mut requests)?;
/// assert_eq!((done.len(), requests.len()), (1, 0));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Waitsome")]
#[track_caller]
pub fn wait_some(requests: &mut Vec<Request>) -> Result<Vec<(usize, Tensor)>> {
    let site = Site::new("wait_some");
    let places = ended(site, requests)?;
    let taken: Vec<_> = places.iter().rev().map(|&place| (place, requests.remove(place))).collect();
    let (mut done, mut failed) = (Vec::with_capacity(taken.len()), Vec::new());
    for (place, request) in taken.into_iter().rev() {
        match request.complete(site, None) {
            Ok(result) => done.push((place, result)),
            Err(error) => failed.push((place, error)),
        }
    }
    let mut removed: Vec<usize> = done.iter().map(|(place, _)| *place).collect();
    let mut failed = failed.into_iter();
    let error = if done.is_empty() { failed.next() } else { None };
    removed.extend(error.iter().map(|(place, _)| *place));
    for (place, error) in failed {
        let before = removed.iter().filter(|&&other| other < place).count();
        requests.insert(place - before, Request::failed(error));
    }
    error.map_or(Ok(done), |(_, error)| Err(error))
}

/// Places of requests that have ended: at least one.
fn ended(site: Site, requests: &[Request]) -> Result<Vec<usize>> {
    if requests.is_empty() {
        let message = "there are no requests to wait for".to_owned();
        return Err(Error::Argument { call: site.call, message });
    }
    let part = requests.iter().find_map(|request| request.parts.first());
    let _waiting = part.and_then(|part| part.comm.environment().watch(site));
    loop {
        let mut places = Vec::new();
        for (place, request) in requests.iter().enumerate() {
            // What went wrong is told to who takes the request.
            if request.has_ended().unwrap_or(true) {
                places.push(place);
            }
        }
        if !places.is_empty() {
            return Ok(places);
        }
        std::thread::yield_now();
    }
}
