//! The derivatives of the reductions that are not linear: local work, one linear operator, local
//! work. All of it is differentiable, so the second derivative follows.

use tch::{Kind, Tensor};

use super::scan::{self, End};
use crate::autograd;
use crate::communicator::Communicator;
use crate::error::Result;
use crate::reduction::Op;

/// Of `y = all_reduce(x, Max)` or `Min`: `x̄_s = (m_s / k) · Σ_r ȳ_r` with `m_s = [x_s = y]` and
/// `k = Σ_s m_s`. Ties share, so no mass is lost. Σȳ and k travel in one call.
pub(super) fn extremum(
    comm: &Communicator,
    x: &Tensor,
    y: &Tensor,
    cotangent: &Tensor,
) -> Result<Tensor> {
    let kind = x.f_kind()?;
    // A 16-bit number cannot count many ranks.
    let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
    let mask = equal(x, y)?.f_to_kind(wide)?;
    let both = Tensor::f_stack(&[&cotangent.f_to_kind(wide)?, &mask], 0)?;
    let sums = comm.all_reduce(&both, Op::Sum)?;
    let (total, ties) = (sums.f_select(0, 0)?, sums.f_select(0, 1)?);
    Ok(mask.f_div(&ties)?.f_mul(&total)?.f_to_kind(kind)?)
}

/// Where x is the extremum: a NaN equals nothing, and yet it is the extremum where there is one.
fn equal(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let both_nan = x.f_isnan()?.f_logical_and(&y.f_isnan()?)?;
    Ok(x.f_eq_tensor(y)?.f_logical_or(&both_nan)?)
}

/// The lowest rank whose x is the extremum y.
pub(super) fn owners(comm: &Communicator, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let nowhere = x.f_zeros_like()?.f_to_kind(Kind::Int64)?;
    let rank = nowhere.f_full_like(i64::from(comm.rank()))?;
    let nobody = rank.f_full_like(i64::MAX)?;
    comm.all_reduce(&rank.f_where_self(&equal(x, y)?, &nobody)?, Op::Min)
}

/// The reduction of the first `ranks` ranks' x, for derivatives of scans: every rank gets all x.
///
/// The other ranks' x is hidden by the op's identity instead of being left out: so the graph is the
/// same on all ranks, and they communicate alike in the backward pass, of second order too.
pub(super) fn prefix(comm: &Communicator, x: &Tensor, op: Op, ranks: i64) -> Result<Tensor> {
    let all = comm.all_gather(&x.f_unsqueeze(0)?, 0)?;
    let mut shape = vec![1; x.dim() + 1];
    shape[0] = i64::from(comm.size());
    let later = Tensor::f_arange(shape[0], (Kind::Int64, x.device()))?.f_ge(ranks)?;
    let before = all.f_masked_fill(&later.f_view(&shape[..])?, op.identity(x.f_kind()?))?;
    Ok(match op {
        Op::Max => before.f_amax(0, false)?,
        Op::Min => before.f_amin(0, false)?,
        _ => before.f_prod_dim_int(0, false, None::<Kind>)?,
    })
}

/// Of `y = all_reduce(x, Prod)`: `x̄_s = conj(E_s) · Σ_r ȳ_r`, where `E_s` is the product of the
/// other ranks' factors.
pub(super) fn product(
    comm: &Communicator,
    x: &Tensor,
    _y: &Tensor,
    cotangent: &Tensor,
) -> Result<Tensor> {
    let (others, total) = if autograd::is_recording() {
        product_of_gathered(comm, x, cotangent)?
    } else {
        // The factors before this rank's, and those after it: unlike a division by x_s, this is
        // exact with zeros, and overflows no earlier than the derivative itself.
        let before = scan::exscan_from(comm, x, Op::Prod, End::First)?;
        let after = scan::exscan_from(comm, x, Op::Prod, End::Last)?;
        (before.f_mul(&after)?, comm.all_reduce(cotangent, Op::Sum)?)
    };
    Ok(others.f_conj()?.f_mul(&total)?)
}

/// `E_s` and Σȳ as functions of all ranks' x, for derivatives of the derivative: every rank gets
/// all factors, and multiplies those of the others.
fn product_of_gathered(
    comm: &Communicator,
    x: &Tensor,
    cotangent: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let (rank, size) = (i64::from(comm.rank()), i64::from(comm.size()));
    let zeros = x.f_zeros_like()?;
    let own = |r| if r == rank { x } else { &zeros };
    let slots: Vec<&Tensor> = (0..size).map(own).chain([cotangent]).collect();
    let gathered = comm.all_reduce(&Tensor::f_stack(&slots, 0)?, Op::Sum)?;
    let total = gathered.f_select(0, size)?;
    let before = gathered.f_narrow(0, 0, rank)?;
    let after = gathered.f_narrow(0, rank + 1, size - rank - 1)?;
    let others = Tensor::f_cat(&[before, after], 0)?;
    Ok((others.f_prod_dim_int(0, false, None::<Kind>)?, total))
}
