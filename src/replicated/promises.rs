//! The comparison of tensors that the program says are the same on all ranks.

use std::hash::{DefaultHasher, Hasher};

use tch::Tensor;

use crate::autograd::Recording;
use crate::base::check::Check;
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::call::buffer::Input;
use crate::engine::agreement::{Terms, agree, refuse};
use crate::engine::communicator::Communicator;
use crate::environment::datatype::{Class, Datatype};

/// Checks a tensor that the program says is the same on all ranks. Under
/// `MPI4TCH_CHECK=collective` the ranks compare it; otherwise the check is local.
pub(super) fn check_same(site: Site, comm: &Communicator, x: &Tensor) -> Result<()> {
    let input = match Input::new(site.call, x) {
        Ok(input) => input,
        Err(error) => return Err(refuse_same(site, comm, error)),
    };
    if comm.check_level() != Check::Collective {
        return Ok(());
    }
    let subject = Some((input.datatype(), comm.records(input.view())));
    let (shape, values) = (Some((input.shape(), None)), hash(input));
    let terms = values.map(|hash| Terms { shape, values: Some(hash), ..Terms::default() });
    let (_, turn) = agree(site, comm, subject, terms, false, comm.environment().way())?;
    turn.made();
    Ok(())
}

/// The error of a rank that has no such tensor. Under `MPI4TCH_CHECK=collective` the rank tells the
/// others, which compare theirs.
pub(super) fn refuse_same(site: Site, comm: &Communicator, error: Error) -> Error {
    match comm.check_level() {
        Check::Collective => refuse(site, comm, error, false),
        Check::Local | Check::None => error,
    }
}

/// A hash of the elements, by their bits. All NaNs count as equal: in a sum of two NaNs, the
/// processor keeps the bits of the first, which is another one on each rank.
fn hash(input: Input) -> Result<u64> {
    /// How many elements are copied at a time.
    const PIECE: i64 = 1 << 20;
    let _recording = Recording::off();
    let Datatype { class, .. } = input.datatype();
    let input = input.contiguous()?;
    let flat = input.sent().f_view([-1])?;
    let flat = if class == Class::Complex { flat.f_view_as_real()?.f_view([-1])? } else { flat };
    let size = flat.f_kind()?.elt_size_in_bytes();
    let mut hasher = DefaultHasher::new();
    let mut bytes = Vec::new();
    for piece in flat.f_split(PIECE, 0)? {
        let piece = match class {
            Class::Half | Class::Real | Class::Complex => {
                piece.f_masked_fill(&piece.f_isnan()?, f64::NAN)?
            }
            Class::Integer | Class::Bool => piece,
        };
        let count = piece.numel();
        bytes.resize(count * size, 0);
        piece.f_copy_data_u8(&mut bytes, count)?;
        hasher.write(&bytes);
    }
    Ok(hasher.finish())
}
