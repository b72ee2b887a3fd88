//! [`join_dummies`]: graph edges without data, for programs that order the backward pass by hand.

use tch::Tensor;

use crate::autograd::{self, Device, Metadata, Recording, is_recording};
use crate::base::error::{Error, Result};
use crate::environment::datatype::{Class, Datatype};

/// Returns `x` with graph edges to the dummies as well. The backward pass then reaches the
/// operations that made the dummies, and only after those that use the result.
///
/// Local. Users of mpi4torch order their communication in this way; a [`Tape`](crate::Tape) makes
/// it unnecessary.
///
/// - Shape, kind: those of `x`. The dummies may have any shape and any kind, also one that MPI
///   lacks.
/// - Adjoint: the cotangent goes to `x`, zeros go to the dummies. Each tensor may require grad or
///   not. If none of the dummies does, or if `x` is of a kind that carries no gradient, the result
///   is `x`.
/// - The result shares the storage of `x`. While one of them is still to be used, the other must
///   not be changed in place: torch refuses either the change or the later use.
///
/// # Errors
/// [`Error::Undefined`] if `x` is undefined (an undefined dummy counts as one that does not require
/// grad); [`Error::Layout`] if `x` or a dummy that requires grad is not dense; [`Error::Torch`] or
/// [`Error::Autograd`] if libtorch fails.
///
/// # Examples
/// ```
/// use tch::{Kind, Tensor};
///
/// let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
/// let dummy = Tensor::from_slice(&[2.0, 3.0]).set_requires_grad(true);
/// mpi4tch::join_dummies(&x, &[&dummy])?.sum(Kind::Double).backward();
/// assert_eq!(x.grad(), Tensor::from_slice(&[1.0]));
/// assert_eq!(dummy.grad(), Tensor::from_slice(&[0.0, 0.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn join_dummies(x: &Tensor, dummies: &[&Tensor]) -> Result<Tensor> {
    if !Metadata::of(x).is_defined() {
        return Err(Error::Undefined { call: CALL });
    }
    let mut inputs = vec![x];
    let mut zeros = Vec::with_capacity(dummies.len());
    for dummy in dummies {
        if requires_grad(dummy) {
            inputs.push(dummy);
            zeros.push(Zeros::like(dummy)?);
        }
    }
    if zeros.is_empty() || !can_require_grad(x)? {
        return Ok(x.shallow_clone());
    }
    if !Metadata::of(x).is_strided() {
        return Err(Error::Layout { call: CALL });
    }
    let y = autograd::alias(CALL, x)?;
    autograd::add_node(CALL, inputs, [&y], &[], move |mut backward| {
        let cotangent = backward.cotangents.swap_remove(0);
        let zeros = zeros.iter().map(|zeros| zeros.joined_to(&cotangent).map(Some));
        let mut gradients: Vec<_> = zeros.collect::<Result<_>>()?;
        gradients.insert(0, Some(cotangent));
        Ok(gradients)
    })?;
    Ok(y)
}

const CALL: &str = "join_dummies";

/// Whether operations on the tensor are recorded, whatever its layout.
fn requires_grad(x: &Tensor) -> bool {
    Metadata::of(x).is_defined() && is_recording() && x.requires_grad()
}

fn can_require_grad(x: &Tensor) -> Result<bool> {
    Ok(match Datatype::of(Metadata::of(x).scalar_type()).map(|datatype| datatype.class) {
        Some(class) => !matches!(class, Class::Integer | Class::Bool),
        None => x.f_is_floating_point()? || x.f_is_complex()?,
    })
}

/// The gradient of a dummy, which is zeros.
#[derive(Debug)]
struct Zeros {
    shape: Vec<i64>,
    scalar_type: i32,
    device: Device,
}

impl Zeros {
    fn like(x: &Tensor) -> Result<Self> {
        let view = Metadata::of(x);
        if !view.is_strided() {
            return Err(Error::Layout { call: CALL });
        }
        let (scalar_type, device) = (view.scalar_type(), view.device());
        Ok(Self { shape: x.size(), scalar_type, device })
    }

    /// The zeros, with an edge to the cotangent, which orders the second backward pass too.
    fn joined_to(&self, cotangent: &Tensor) -> Result<Tensor> {
        let zeros = {
            let _recording = Recording::off();
            let (mut zero, _) = autograd::empty_on(self.device, CALL, &[], self.scalar_type)?;
            let _ = zero.f_zero_()?;
            zero.f_expand(&self.shape[..], false)?
        };
        if requires_grad(cotangent) {
            let back = Self::like(cotangent)?;
            autograd::add_node(CALL, [cotangent], [&zeros], &[], move |backward| {
                Ok(vec![Some(back.joined_to(&backward.cotangents[0])?)])
            })?;
        }
        Ok(zeros)
    }
}
