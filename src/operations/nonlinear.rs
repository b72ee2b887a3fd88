//! The derivatives of the reductions that are not linear: local work, linear operators, local work.
//! All of it is differentiable, so the second derivative follows.

use tch::{Kind, Tensor};

use super::all_reduce::AllReduce;
use super::scan::{self, End};
use crate::autograd::{self, Recording};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Derivative, Mode, apply};

/// Of `y = all_reduce(x, Max)` or `Min`: `x̄_s = (m_s / k) · Σ_r ȳ_r` with `m_s = [x_s = y]` and
/// `k = Σ_s m_s`. Ties share, so no mass is lost. Σȳ and k travel in one call.
pub(super) struct Extremum;

impl Derivative for Extremum {
    const READS: bool = true;

    fn pull<M: Mode>(
        &self,
        comm: &Communicator,
        saved: &[Tensor],
        cotangent: &Tensor,
    ) -> Result<M::Output> {
        let (x, y) = (&saved[0], &saved[1]);
        let kind = x.f_kind()?;
        // A 16-bit number cannot count many ranks.
        let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
        let mask = equal(x, y)?.f_to_kind(wide)?;
        let both = Tensor::f_stack(&[&cotangent.f_to_kind(wide)?, &mask], 0)?;
        let sums = apply::<M>(&AllReduce::new(Op::Sum), comm, &both)?;
        M::then([sums], move |[sums]| {
            let (total, ties) = (sums.f_select(0, 0)?, sums.f_select(0, 1)?);
            // There is nobody where the owner has dropped the request, which is an error there.
            let ties = ties.f_clamp_min(1)?;
            Ok(mask.f_div(&ties)?.f_mul(&total)?.f_to_kind(kind)?)
        })
    }
}

/// Where x is the extremum: a NaN equals nothing, and yet it is the extremum where there is one.
fn equal(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let both_nan = x.f_isnan()?.f_logical_and(&y.f_isnan()?)?;
    Ok(x.f_eq_tensor(y)?.f_logical_or(&both_nan)?)
}

/// The lowest rank whose x is the extremum y.
#[track_caller]
pub(super) fn owners(comm: &Communicator, x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let nowhere = x.f_zeros_like()?.f_to_kind(Kind::Int64)?;
    let rank = nowhere.f_full_like(i64::from(comm.rank()))?;
    let nobody = rank.f_full_like(i64::MAX)?;
    comm.all_reduce(&rank.f_where_self(&equal(x, y)?, &nobody)?, Op::Min)
}

/// The reduction of the first `ranks` of all ranks' x, which lie along the first axis.
///
/// The other ranks' x is hidden by the op's identity instead of being left out: so the graph is the
/// same on all ranks, and they communicate alike in the backward pass, of second order too.
pub(super) fn reduce_first(all: &Tensor, op: Op, ranks: i64) -> Result<Tensor> {
    let count = all.size()[0];
    let mut shape = vec![1; all.dim()];
    shape[0] = count;
    let later = Tensor::f_arange(count, (Kind::Int64, all.device()))?.f_ge(ranks)?;
    let later = later.f_view(&shape[..])?;
    let before = all.f_masked_fill(&later, op.identity(all.f_kind()?))?;
    if op == Op::Prod {
        return Ok(before.f_prod_dim_int(0, false, None::<Kind>)?);
    }
    // torch's own derivative knows nothing of the hidden ranks, which may equal the extremum, and
    // loses a NaN.
    let (y, share) = {
        let _recording = Recording::off();
        let y = if op == Op::Max { before.f_amax(0, false)? } else { before.f_amin(0, false)? };
        let mask = equal(&before, &y)?.f_logical_and(&later.f_logical_not()?)?;
        let ties = mask.f_sum_dim_intlist(0, true, Kind::Int64)?.f_clamp_min(1)?;
        (y, mask.f_to_kind(Kind::Double)?.f_div(&ties)?.f_to_kind(all.f_kind()?)?)
    };
    autograd::add_node("reduce_first", &[&before], &[&y], &[&share], |backward| {
        Ok(vec![Some(backward.saved?[0].f_mul(&backward.cotangents[0])?)])
    })?;
    Ok(y)
}

/// Of `y = all_reduce(x, Prod)`: `x̄_s = conj(E_s) · Σ_r ȳ_r`, where `E_s` is the product of the
/// other ranks' factors.
pub(super) struct Product;

impl Derivative for Product {
    const READS: bool = true;

    fn pull<M: Mode>(
        &self,
        comm: &Communicator,
        saved: &[Tensor],
        cotangent: &Tensor,
    ) -> Result<M::Output> {
        let x = &saved[0];
        if autograd::is_recording() {
            return product_of_gathered::<M>(comm, x, cotangent);
        }
        // The factors before this rank's, and those after it: unlike a division by x_s, this is
        // exact with zeros, and overflows no earlier than the derivative itself.
        let before = scan::exscan_from::<M>(comm, x, Op::Prod, End::First)?;
        let after = scan::exscan_from::<M>(comm, x, Op::Prod, End::Last)?;
        let total = apply::<M>(&AllReduce::new(Op::Sum), comm, cotangent)?;
        M::then([before, after, total], |[before, after, total]| {
            Ok(before.f_mul(&after)?.f_conj()?.f_mul(&total)?)
        })
    }
}

/// `E_s` and Σȳ as functions of all ranks' x, for derivatives of the derivative: every rank gets
/// all factors, and multiplies those of the others.
fn product_of_gathered<M: Mode>(
    comm: &Communicator,
    x: &Tensor,
    cotangent: &Tensor,
) -> Result<M::Output> {
    let (rank, size) = (i64::from(comm.rank()), i64::from(comm.size()));
    let zeros = x.f_zeros_like()?;
    let own = |r| if r == rank { x } else { &zeros };
    let slots: Vec<&Tensor> = (0..size).map(own).chain([cotangent]).collect();
    let gathered = apply::<M>(&AllReduce::new(Op::Sum), comm, &Tensor::f_stack(&slots, 0)?)?;
    M::then([gathered], move |[gathered]| {
        let total = gathered.f_select(0, size)?;
        let before = gathered.f_narrow(0, 0, rank)?;
        let after = gathered.f_narrow(0, rank + 1, size - rank - 1)?;
        let others = Tensor::f_cat(&[before, after], 0)?;
        Ok(others.f_prod_dim_int(0, false, None::<Kind>)?.f_conj()?.f_mul(&total)?)
    })
}
