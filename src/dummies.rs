//! [`join_dummies`]: dependence without data, for those who order the backward pass by hand.

use tch::Tensor;

use crate::autograd::{self, View};
use crate::datatype::{Class, Datatype};
use crate::error::Result;

/// `x`, made to depend on the dummies: the backward pass reaches what they come from, and reaches
/// it only after what is made from the result.
///
/// Local. It is how mpi4torch's users order their communication; a [`Tape`](crate::Tape) makes it
/// unnecessary.
///
/// - Shape, kind: those of `x`, whose storage the result shares; the dummies may have any.
/// - Adjoint: the cotangent goes to `x`, zeros go to the dummies. Any of them may require grad or
///   not. Where none of the dummies does, or `x` is of a kind that carries no gradient, the result
///   is `x`.
/// - As the result shares `x`'s storage, neither may be changed in place while the other is still to
///   be used: torch refuses that other one then, or the change.
///
/// # Examples
/// ```
/// use tch::{Kind, Tensor};
///
/// let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
/// let dummy = Tensor::from_slice(&[2.0, 3.0]).set_requires_grad(true);
/// mpi4tch::join_dummies(&x, &[&dummy]).sum(Kind::Double).backward();
/// assert_eq!(x.grad(), Tensor::from_slice(&[1.0]));
/// assert_eq!(dummy.grad(), Tensor::from_slice(&[0.0, 0.0]));
/// ```
pub fn join_dummies(x: &Tensor, dummies: &[&Tensor]) -> Tensor {
    // What cannot have a history of its own has none to be joined to.
    join(x, dummies).unwrap_or_else(|_| x.shallow_clone())
}

const CALL: &str = "join_dummies";

fn join(x: &Tensor, dummies: &[&Tensor]) -> Result<Tensor> {
    let dummies: Vec<&Tensor> =
        dummies.iter().copied().filter(|dummy| View::of(dummy).requires_grad()).collect();
    if dummies.is_empty() || !can_require_grad(x) {
        return Ok(x.shallow_clone());
    }
    let shapes: Vec<_> =
        dummies.iter().map(|dummy| Like::of(dummy)).collect::<Option<_>>().unwrap_or_default();
    let y = autograd::alias(CALL, x)?;
    let inputs: Vec<&Tensor> = std::iter::once(x).chain(dummies).collect();
    autograd::record(CALL, &inputs, &[&y], &[], move |mut backward| {
        let cotangent = backward.cotangents.swap_remove(0);
        let mut gradients = Vec::with_capacity(1 + shapes.len());
        for shape in &shapes {
            gradients.push(Some(shape.zeros(&cotangent)?));
        }
        gradients.insert(0, Some(cotangent));
        Ok(gradients)
    })?;
    Ok(y)
}

fn can_require_grad(x: &Tensor) -> bool {
    let view = View::of(x);
    let class = Datatype::of(view.scalar_type()).map(|datatype| datatype.class);
    view.is_defined() && !matches!(class, None | Some(Class::Integer | Class::Bool))
}

/// What zeros for a dummy look like.
#[derive(Debug)]
struct Like {
    shape: Vec<i64>,
    datatype: Datatype,
    device: tch::Device,
}

impl Like {
    fn of(x: &Tensor) -> Option<Self> {
        let datatype = Datatype::of(View::of(x).scalar_type())?;
        Some(Self { shape: x.size(), datatype, device: x.device() })
    }

    /// Zeros that depend on the cotangent, so that the second backward pass is ordered too.
    fn zeros(&self, cotangent: &Tensor) -> Result<Tensor> {
        let zeros = tch::no_grad(|| {
            Tensor::f_zeros([0_i64; 0], (self.datatype.kind, self.device))?
                .f_expand(&self.shape[..], false)
        })?;
        if View::of(cotangent).requires_grad()
            && let Some(back) = Self::of(cotangent)
        {
            autograd::record(CALL, &[cotangent], &[&zeros], &[], move |backward| {
                Ok(vec![Some(back.zeros(&backward.cotangents[0])?)])
            })?;
        }
        Ok(zeros)
    }
}
