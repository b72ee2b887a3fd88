//! Waiting for several requests.

use tch::Tensor;

use super::Request;
use crate::base::error::{Error, Result};
use crate::base::site::Site;

/// Waits for all requests, and returns their results in order.
///
/// Does what `MPI_Waitall` does. All requests are waited for, even if one fails.
///
/// # Errors
/// As for [`Request::wait`]; the first error, in order of the requests.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = Tensor::from_slice(&[1.0]);
/// let requests = [world.iall_reduce(&x, Op::Mean)?, world.iscan(&x, Op::Max)?];
/// let results = mpi4tch::wait_all(requests)?;
/// assert_eq!(results, [x.shallow_clone(), x]);
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

/// Waits until one of the requests has ended, and removes it. Returns its place and its result.
///
/// Does what `MPI_Waitany` does. Which request ends first may differ from rank to rank. That suits
/// messages, but not collective operations that are to be differentiated: their adjoints are
/// carried out in the reverse order of the waits, which must be the same on all ranks. On a
/// [`Tape`](crate::Tape) different orders are an error of the backward pass.
///
/// # Errors
/// [`Error::Argument`] if there are no requests; as for [`Request::wait`] if the request has
/// failed, which is removed as well.
///
/// # Examples
/// ```
/// use mpi4tch::Op;
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let x = Tensor::from_slice(&[1.0]);
/// let mut requests = vec![universe.world().iall_reduce(&x, Op::Mean)?];
/// let (place, mean) = mpi4tch::wait_any(&mut requests)?;
/// assert_eq!((place, mean), (0, x));
/// assert!(requests.is_empty());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Waitany")]
#[track_caller]
pub fn wait_any(requests: &mut Vec<Request>) -> Result<(usize, Tensor)> {
    let site = Site::new("wait_any");
    let place = ended(site, requests, 1)?[0];
    Ok((place, requests.remove(place).complete(site, None)?))
}

/// Waits until at least one of the requests has ended, and removes all that have ended. Returns
/// their places, in order, and their results.
///
/// Does what `MPI_Waitsome` does; otherwise as [`wait_any`]. If some fail and others succeed, those
/// that failed stay in the list, and waiting for them again returns their errors.
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
/// let x = Tensor::from_slice(&[1.0]);
/// let mut requests = vec![universe.world().iall_reduce(&x, Op::Mean)?];
/// let done = mpi4tch::wait_some(&mut requests)?;
/// assert_eq!(done, [(0, x)]);
/// assert!(requests.is_empty());
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[doc(alias = "MPI_Waitsome")]
#[track_caller]
pub fn wait_some(requests: &mut Vec<Request>) -> Result<Vec<(usize, Tensor)>> {
    let site = Site::new("wait_some");
    let mut places = ended(site, requests, usize::MAX)?.into_iter().peekable();
    let (mut done, mut first_failed) = (Vec::with_capacity(places.len()), None);
    for (place, request) in std::mem::take(requests).into_iter().enumerate() {
        if places.next_if_eq(&place).is_none() {
            requests.push(request);
            continue;
        }
        match request.complete(site, None) {
            Ok(result) => done.push((place, result)),
            // A failed request stays in the list.
            Err(error) => {
                first_failed = first_failed.or(Some(requests.len()));
                requests.push(Request::failed(error));
            }
        }
    }
    match first_failed.filter(|_| done.is_empty()) {
        Some(place) => requests.remove(place).complete(site, None).map(|_| done),
        None => Ok(done),
    }
}

/// Waits until at least one request has ended. Returns the places of those that have, at most
/// `most`.
fn ended(site: Site, requests: &[Request], most: usize) -> Result<Vec<usize>> {
    if requests.is_empty() {
        let message = "there are no requests to wait for".to_owned();
        return Err(Error::Argument { call: site.call, message });
    }
    let look = || {
        // SAFETY: `wait` gives permission to call MPI.
        let has_ended = |request: &Request| unsafe { request.look() };
        let places = places(requests, most, has_ended);
        Ok((!places.is_empty()).then_some(places))
    };
    match requests.iter().find_map(|request| request.parts.first()) {
        Some(part) => part.comm.environment().wait(site, look),
        None => Ok((0..requests.len().min(most)).collect()),
    }
}

/// The places of the first items, at most `most`, that are wanted. No later item is tested.
fn places<T>(list: &[T], most: usize, is_wanted: impl Fn(&T) -> bool) -> Vec<usize> {
    let wanted = list.iter().enumerate().filter(|(_, item)| is_wanted(item));
    wanted.map(|(place, _)| place).take(most).collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn one_after_the_other_each_is_looked_at_once() {
        const COUNT: usize = 1000;
        let looks = Cell::new(0);
        let mut list: Vec<usize> = (0..COUNT).collect();
        while !list.is_empty() {
            let found = places(&list, 1, |_| {
                looks.set(looks.get() + 1);
                true
            });
            list.remove(found[0]);
        }
        assert_eq!(looks.get(), COUNT);
    }

    #[test]
    fn those_that_are_wanted_are_found() {
        let is_even = |i: &i32| i % 2 == 0;
        assert_eq!(places(&[1, 2, 4, 3, 6], usize::MAX, is_even), [1, 2, 4]);
        assert_eq!(places(&[1, 2, 4, 3, 6], 2, is_even), [1, 2]);
        assert_eq!(places(&[1, 3], 2, is_even), [0; 0]);
    }
}
