//! The derivatives of the reductions that are not linear. Each is local work, then linear
//! operators, then local work. All of it is differentiable, so higher derivatives follow.

use tch::{Device, Kind, Tensor};

use super::all_reduce::AllReduce;
use super::scan::{self, End};
use crate::autograd::{self, Metadata, Recording};
use crate::base::error::Result;
use crate::base::op::Op;
use crate::engine::communicator::Communicator;
use crate::engine::operator::{Derivative, Mode, apply};

/// The derivative of `y = all_reduce(x, Max)` or `Min`: `x̄_s = (m_s / k) · Σ_r ȳ_r` with
/// `m_s = [x_s = y]` and `k = Σ_s m_s`. Ranks that tie share the cotangent equally. Σȳ and k are
/// summed in one call.
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
        // 16-bit kinds cannot count many ranks exactly.
        let wide = if matches!(kind, Kind::Half | Kind::BFloat16) { Kind::Float } else { kind };
        let mask = equal(x, y)?.f_to_kind(wide)?;
        let both = Tensor::f_stack(&[&cotangent.f_to_kind(wide)?, &mask], 0)?;
        let sums = apply::<M>(&AllReduce::new(Op::Sum), comm, &both)?;
        M::then([sums], move |[sums]| {
            let (total, ties) = (sums.f_select(0, 0)?, sums.f_select(0, 1)?);
            // k is 0 if the owner has dropped its request: it then takes part with NaN in place of
            // the result, and gets an error.
            let ties = ties.f_clamp_min(1)?;
            Ok(mask.f_div(&ties)?.f_mul(&total)?.f_to_kind(kind)?)
        })
    }
}

/// Where x is the extremum y. A NaN is equal to nothing, but if there is one, it is the extremum.
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

/// The reduction of the x of the first `ranks` ranks. `all` has the x of all ranks along its first
/// axis.
///
/// The x of the other ranks is replaced by the op's identity, not cut off. So the graph is the same
/// on all ranks, and they communicate alike in backward passes of any order.
pub(super) fn reduce_first(all: &Tensor, op: Op, ranks: i64) -> Result<Tensor> {
    let count = all.size()[0];
    let mut shape = vec![1; all.dim()];
    shape[0] = count;
    let later = Tensor::f_arange(count, (Kind::Int64, Device::Cpu))?.f_ge(ranks)?;
    let later = autograd::moved("reduce_first", &later, Metadata::of(all).device())?;
    let later = later.f_view(&shape[..])?;
    let before = all.f_masked_fill(&later, op.identity(all.f_kind()?))?;
    if op == Op::Prod {
        return Ok(before.f_prod_dim_int(0, false, None::<Kind>)?);
    }
    // The derivative of torch's amax and amin would give the replaced ranks a share if the identity
    // is the extremum, and does not work for a NaN.
    let (y, share) = {
        let _recording = Recording::off();
        let y = if op == Op::Max { before.f_amax(0, false)? } else { before.f_amin(0, false)? };
        let mask = equal(&before, &y)?.f_logical_and(&later.f_logical_not()?)?;
        let ties = mask.f_sum_dim_intlist(0, true, Kind::Int64)?.f_clamp_min(1)?;
        (y, mask.f_to_kind(Kind::Double)?.f_div(&ties)?.f_to_kind(all.f_kind()?)?)
    };
    autograd::add_node("reduce_first", [&before], [&y], &[&share], |backward| {
        Ok(vec![Some(backward.saved?[0].f_mul(&backward.cotangents[0])?)])
    })?;
    Ok(y)
}

/// The derivative of `y = all_reduce(x, Prod)`: `x̄_s = conj(E_s) · Σ_r ȳ_r`, where `E_s` is the
/// product of the other ranks' factors.
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
        // E_s is the product of the factors of the ranks before and of the ranks after. Unlike y /
        // x_s it is right for zeros, and it does not overflow unless a product of factors of E_s
        // does.
        let before = scan::exscan_from::<M>(comm, x, Op::Prod, End::First)?;
        let after = scan::exscan_from::<M>(comm, x, Op::Prod, End::Last)?;
        let total = apply::<M>(&AllReduce::new(Op::Sum), comm, cotangent)?;
        M::then([before, after, total], |[before, after, total]| {
            Ok(before.f_mul(&after)?.f_conj()?.f_mul(&total)?)
        })
    }
}

/// The same for a backward pass that is recorded: every rank gets all factors, and multiplies those
/// of the others. `E_s` is then a differentiable function of all ranks' x.
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
