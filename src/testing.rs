//! Tests of parallel derivatives over all ranks: the inner-product test, comparison with a serial
//! computation, and comparison with finite differences.
//!
//! This crate tests itself with them. They are public so that functions composed of its operations
//! can be tested in the same way. Each test is collective, and all ranks have the same outcome: the
//! test returns on all ranks, or panics on all with a text that tells by how much it failed. If the
//! tested function returns an error on one rank, the test returns an error on all.
//!
//! If the communicator given to a test is on a [`Tape`](crate::Tape), or if the function given to
//! it records calls on one, the backward passes are those of the tape, which then starts anew.
//!
//! Data is random, different on each rank, and the same in each run: a test with equal data, or
//! with cotangents of ones, cannot detect a wrong root or a missing rank. It is drawn from
//! libtorch's generator, which is seeded anew for each tensor. Tensors may be on any device, another one
//! on each rank: what a test draws and computes is on the device of the tensor that it is given.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use tch::{Kind, Tensor};

use crate::autograd::{self, Metadata};
use crate::base::error::{Error, Result};
use crate::base::site::Site;
use crate::engine::agreement::agree_on;
use crate::engine::communicator::Communicator;
use crate::engine::runtime::Runtime;
use crate::engine::tape::{self, PassOptions, Record};

/// A random tensor in host memory, different on each rank: normal for floating-point and complex
/// kinds, small integers, or truth values.
///
/// # Errors
/// [`Error::Torch`] if libtorch cannot make such a tensor.
///
/// # Examples
/// ```
/// use tch::Kind;
///
/// let universe = mpi4tch::initialize()?;
/// let x = mpi4tch::testing::random(&universe.world(), &[2, 3], Kind::Double)?;
/// assert_eq!(x.size(), [2, 3]);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn random(comm: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    let x = draw(comm, shape, kind)?;
    Ok(match PLACEMENT.get() {
        Some(place) => place(x),
        None => x,
    })
}

/// What puts the tensors of [`random`] on a device, if anything does.
static PLACEMENT: OnceLock<fn(Tensor) -> Tensor> = OnceLock::new();

/// Lets [`random`] return tensors that this function has put on a device. Only the first function that
/// is set has an effect.
// Public because the tests in `tests/`, which run on several devices, are crates of their own.
#[doc(hidden)]
pub fn place_random(place: fn(Tensor) -> Tensor) {
    let _ = PLACEMENT.set(place);
}

/// A random tensor of the shape and kind of `like`, on its device.
fn random_like(comm: &Communicator, like: &Tensor) -> Result<Tensor> {
    on_device_of(like, &draw(comm, &like.size(), like.f_kind()?)?)
}

/// The tensor on the device of `other`, which is of the same kind. tch's `Device` does not have every
/// device of libtorch.
fn on_device_of(other: &Tensor, x: &Tensor) -> Result<Tensor> {
    Ok(x.f_to_other(other, false, false)?)
}

/// The tensor of [`random`], in host memory.
fn draw(comm: &Communicator, shape: &[i64], kind: Kind) -> Result<Tensor> {
    /// The number of tensors drawn so far, which is part of the seed.
    static DRAWN: AtomicI64 = AtomicI64::new(0);
    let seed = DRAWN.fetch_add(1, Ordering::Relaxed) * 1_000_003 + i64::from(comm.rank());
    tch::manual_seed(seed);
    let on = |kind| (kind, tch::Device::Cpu);
    Ok(match kind {
        Kind::Bool => Tensor::f_randint(2, shape, on(Kind::Int64))?.f_to_kind(kind)?,
        Kind::Uint8 => Tensor::f_randint(9, shape, on(kind))?,
        Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64 => {
            Tensor::f_randint_low(-4, 5, shape, on(kind))?
        }
        Kind::Half | Kind::BFloat16 => Tensor::f_randn(shape, on(Kind::Float))?.f_to_kind(kind)?,
        _ => Tensor::f_randn(shape, on(kind))?,
    })
}

/// The inner-product test of a linear `f`: checks that Σ⟨f(x), ȳ⟩ over all ranks equals Σ⟨x, x̄⟩,
/// where ȳ is random and x̄ comes from a backward pass.
///
/// The equation holds for all x and ȳ if and only if the backward pass of `f` is its adjoint.
///
/// # Panics
/// On every rank, if the two differ by more than the rounding errors of the tensor's kind.
///
/// # Errors
/// Whatever `f` returns, or the backward pass.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, testing};
/// use tch::Kind;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = testing::random(&world, &[3], Kind::Double)?;
/// testing::assert_adjoint(&world, &x, |x| world.all_reduce(x, Op::Sum))?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn assert_adjoint(
    comm: &Communicator,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let x = leaf(x)?;
    let (y, tape) = evaluate(comm, || f(&x))?;
    let cotangent = random_like(comm, &y)?;
    let gradient =
        together(comm, pull_back(tape.as_ref(), &y, &cotangent, &[&x], false))?.remove(0);
    let [forward, backward] =
        [total(comm, inner(&y, &cotangent)?)?, total(comm, inner(&x, &gradient)?)?];
    // A bound of the sums without cancellation, to which rounding errors are relative.
    let scale = total(comm, norm(&y)? * norm(&cotangent)? + norm(&x)? * norm(&gradient)?)?;
    let error = (forward - backward).abs();
    assert!(
        error <= tolerance(x.f_kind()?) * scale,
        "not the adjoint: Σ⟨f(x), ȳ⟩ = {forward:e}, Σ⟨x, x̄⟩ = {backward:e}, difference {error:e} \
         at a scale of {scale:e}"
    );
    Ok(())
}

/// The serial oracle: checks that the result of `f` on every rank equals that rank's part of the
/// result of `serial`, in value, shape, kind and device and, for kinds that carry gradients, in first
/// and second derivatives.
///
/// `serial` gets the list of all ranks' tensors, on the device of this rank's, and returns one tensor
/// per rank, computed by libtorch alone.
///
/// # Panics
/// On every rank, if any rank's value or derivative differs by more than rounding errors; the text
/// names the ranks.
///
/// # Errors
/// Whatever `f` returns, or the backward passes.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, testing};
/// use tch::{Kind, Tensor};
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = testing::random(&world, &[3], Kind::Double)?;
/// testing::assert_serial(
///     &world,
///     &x,
///     |x| world.all_reduce(x, Op::Sum),
///     |xs| {
///         let sum = Tensor::stack(xs, 0).sum_dim_intlist(0, false, Kind::Double);
///         xs.iter().map(|_| sum.shallow_clone()).collect()
///     },
/// )?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn assert_serial(
    comm: &Communicator,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
    serial: impl Fn(&[Tensor]) -> Vec<Tensor>,
) -> Result<()> {
    let rank = usize::try_from(comm.rank()).unwrap_or(0);
    if !carries_gradient(x.f_kind()?) {
        let expected = serial(&all_ranks(comm, x)?).swap_remove(rank);
        return agree(comm, "value", mismatch(&together(comm, f(x))?, &expected)?);
    }
    let x = leaf(x)?;
    let xs = all_ranks(comm, &x)?.iter().map(leaf).collect::<Result<Vec<_>>>()?;
    let (y, tape) = evaluate(comm, || f(&x))?;
    let ys = serial(&xs);
    agree(comm, "value", mismatch(&y, &ys[rank])?)?;

    let cotangent = leaf(&random_like(comm, &y)?)?;
    let cotangents = all_ranks(comm, &cotangent)?.iter().map(leaf).collect::<Result<Vec<_>>>()?;
    let gradient = pull_back(tape.as_ref(), &y, &cotangent, &[&x], true);
    let gradient = together(comm, gradient)?.remove(0);
    let gradients = vjp(&refs(&ys), &refs(&cotangents), &refs(&xs), true)?;
    agree(comm, "first derivative", mismatch(&gradient, &gradients[rank])?)?;

    // The derivative of the gradient by x and by the cotangent.
    let direction = random_like(comm, &x)?;
    let directions = all_ranks(comm, &direction)?;
    let second = pull_back(tape.as_ref(), &gradient, &direction, &[&x, &cotangent], false);
    let second = together(comm, second)?;
    let inputs: Vec<&Tensor> = xs.iter().chain(&cotangents).collect();
    let seconds = vjp(&refs(&gradients), &refs(&directions), &inputs, false)?;
    agree(comm, "second derivative for x", mismatch(&second[0], &seconds[rank])?)?;
    let of_cotangent = &seconds[xs.len() + rank];
    agree(comm, "second derivative for ȳ", mismatch(&second[1], of_cotangent)?)
}

/// Compares the derivative of `f` with central differences, along random directions in the space of
/// all inputs of all ranks. The kind must be `Double` or `ComplexDouble`.
///
/// # Panics
/// On every rank, if the two differ.
///
/// # Errors
/// Whatever `f` returns, or the backward pass.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, testing};
/// use tch::Kind;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = testing::random(&world, &[3], Kind::Double)?;
/// testing::gradcheck(&world, &[&x], |x| world.all_reduce(&x[0].sin(), Op::Sum))?;
/// testing::gradgradcheck(&world, &x, |x| world.all_reduce(&x.sin(), Op::Sum))?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn gradcheck(
    comm: &Communicator,
    inputs: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<()> {
    const STEP: f64 = 1e-5;
    let at = |directions: &[Tensor], t: f64| -> Result<Vec<Tensor>> {
        let moved = inputs.iter().zip(directions);
        moved.map(|(x, v)| leaf(&x.detach().f_add(&v.f_mul_scalar(t)?)?)).collect()
    };
    for _ in 0..3 {
        let directions = inputs.iter().map(|x| random_like(comm, x)).collect::<Result<Vec<_>>>()?;
        let here = at(&directions, 0.0)?;
        let (y, tape) = evaluate(comm, || f(&here))?;
        let cotangent = random_like(comm, &y)?;
        let mut along = 0.0;
        let gradients = pull_back(tape.as_ref(), &y, &cotangent, &refs(&here), false);
        let gradients = together(comm, gradients)?;
        for (gradient, v) in gradients.iter().zip(&directions) {
            along += inner(gradient, v)?;
        }
        let along = total(comm, along)?;
        let value = |t| {
            let moved = at(&directions, t)?;
            let (y, tape) = evaluate(comm, || f(&moved))?;
            forget(comm, tape.as_ref())?;
            total(comm, inner(&y, &cotangent)?)
        };
        let (plus, minus) = (value(STEP)?, value(-STEP)?);
        let difference = (plus - minus) / (2.0 * STEP);
        // Errors of the differences: from cancellation, inversely proportional to the step, and
        // from truncation, proportional to its square.
        let allowed = 1e-9 * (plus.abs() + minus.abs() + 1.0) / STEP.sqrt() + 1e-6 * along.abs();
        assert!(
            (along - difference).abs() <= allowed,
            "derivative {along:e}, by differences {difference:e}, allowed error {allowed:e}"
        );
    }
    Ok(())
}

/// Compares the second derivatives of `f` with central differences of the first derivative: the
/// [`gradcheck`] of (x, ȳ) ↦ x̄.
///
/// # Panics
/// On every rank, if the two differ.
///
/// # Errors
/// Whatever `f` returns, or the backward passes.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, testing};
/// use tch::Kind;
///
/// let universe = mpi4tch::initialize()?;
/// let world = universe.world();
/// let x = testing::random(&world, &[3], Kind::Double)?;
/// testing::gradgradcheck(&world, &x, |x| world.all_reduce(&x.sin(), Op::Sum))?;
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn gradgradcheck(
    comm: &Communicator,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (y, tape) = evaluate(comm, || f(&x.detach()))?;
    forget(comm, tape.as_ref())?;
    let cotangent = random_like(comm, &y)?;
    gradcheck(comm, &[x, &cotangent], |inputs| {
        let [x, cotangent] = inputs else { unreachable!("two inputs were given") };
        let (y, tape) = evaluate(comm, || f(x))?;
        Ok(pull_back(tape.as_ref(), &y, cotangent, &[x], true)?.remove(0))
    })
}

/// The number of nodes of this crate in the autograd graphs of this process: 0 when all graphs have
/// been dropped.
///
/// # Examples
/// ```
/// use mpi4tch::{Op, testing};
/// use tch::Tensor;
///
/// let universe = mpi4tch::initialize()?;
/// let x = Tensor::from_slice(&[1.0]).set_requires_grad(true);
/// let y = universe.world().all_reduce(&x, Op::Sum)?;
/// assert!(testing::live_pullbacks() > 0);
/// drop(y);
/// assert_eq!(testing::live_pullbacks(), 0);
/// # Ok::<(), mpi4tch::Error>(())
/// ```
#[must_use]
pub fn live_pullbacks() -> usize {
    autograd::live_pullbacks()
}

/// Sets the largest count that is passed to MPI as an `int`. Calls with more elements are then made
/// like calls with more than 2³¹ − 1 elements, which tests that code with small tensors. It must be
/// the same on all ranks.
// It is public because the tests in `tests/` are crates of their own. Programs have no use for it.
#[doc(hidden)]
pub fn set_largest_count(count: i32) {
    crate::call::set_largest_count(count);
}

/// Sets in how large pieces tensors on devices are copied and sent.
// Public for the same reason as `set_largest_count`.
#[doc(hidden)]
pub fn set_staging_piece(bytes: usize) {
    crate::call::set_staging_piece(bytes);
}

/// Gives MPI pointers to the memory of all devices, whatever it says of them, or no longer.
// Public for the same reason: the memory of the tests' device can be reached.
#[doc(hidden)]
pub fn force_direct(all: bool) -> Result<()> {
    Runtime::current("force_direct")?.environment.reach_all(all);
    Ok(())
}

/// Lets started receives wait for their messages, as in a program without MPI calls of its own, although
/// the feature `rsmpi` is on.
// Public for the same reason.
#[doc(hidden)]
pub fn assume_no_foreign_calls() -> Result<()> {
    Runtime::current("assume_no_foreign_calls")?.environment.unshare();
    Ok(())
}

fn carries_gradient(kind: Kind) -> bool {
    use Kind::{BFloat16, ComplexDouble, ComplexFloat, Double, Float, Half};
    matches!(kind, Half | BFloat16 | Float | Double | ComplexFloat | ComplexDouble)
}

/// A leaf that requires grad, with the same data and layout.
fn leaf(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_detach()?.f_set_requires_grad(true)?)
}

fn refs(tensors: &[Tensor]) -> Vec<&Tensor> {
    tensors.iter().collect()
}

/// Returns the gradients of `inputs` for given cotangents of `outputs`, which are zeros for inputs
/// that the outputs do not depend on. `create_graph` records the graph of the gradients, and keeps
/// that of the outputs.
///
/// Local, except for the communication in the backward pass. For calls on a tape use
/// [`Tape::vjp`](crate::Tape::vjp) instead.
///
/// # Errors
/// Whatever the backward pass returns.
///
/// # Examples
/// ```
/// use tch::Tensor;
///
/// let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
/// let one = Tensor::from_slice(&[1.0]);
/// let gradients = mpi4tch::testing::vjp(&[&(&x * &x)], &[&one], &[&x], false)?;
/// assert_eq!(gradients[0], Tensor::from_slice(&[4.0]));
/// # Ok::<(), mpi4tch::Error>(())
/// ```
pub fn vjp(
    outputs: &[&Tensor],
    cotangents: &[&Tensor],
    inputs: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Tensor>> {
    // Outputs that do not require grad have no graph.
    let (outputs, cotangents): (Vec<&Tensor>, Vec<&Tensor>) =
        outputs.iter().zip(cotangents).filter(|(y, _)| y.requires_grad()).unzip();
    let gradients = if outputs.is_empty() {
        inputs.iter().map(|_| None).collect()
    } else {
        autograd::grad("grad", &outputs, &cotangents, inputs, create_graph, create_graph)?
    };
    let or_zeros = |(gradient, x): (Option<Tensor>, &&Tensor)| -> Result<Tensor> {
        gradient.map_or_else(|| Ok(x.f_zeros_like()?), Ok)
    };
    gradients.into_iter().zip(inputs).map(or_zeros).collect()
}

/// The tensor in double precision, with complex numbers as pairs of reals.
fn widened(x: &Tensor) -> Result<Tensor> {
    let x = x.f_detach()?.f_resolve_conj()?.f_resolve_neg()?;
    Ok(if x.f_is_complex()? {
        x.f_to_kind(Kind::ComplexDouble)?.f_view_as_real()?
    } else {
        x.f_to_kind(Kind::Double)?
    })
}

/// Re⟨a, b⟩ on this rank.
fn inner(a: &Tensor, b: &Tensor) -> Result<f64> {
    let product = widened(a)?.f_mul(&widened(b)?)?.f_sum(Kind::Double)?;
    Ok(product.f_double_value(&[])?)
}

fn norm(x: &Tensor) -> Result<f64> {
    Ok(inner(x, x)?.sqrt())
}

/// Runs `f`, and returns its result and the tape on which its calls were recorded, if there is one.
/// An error on one rank is an error on all.
fn evaluate(
    comm: &Communicator,
    f: impl FnOnce() -> Result<Tensor>,
) -> Result<(Tensor, Option<Arc<Record>>)> {
    let (outcome, mut used) = tape::tapes_used(f);
    if let Some(record) = comm.tape_record()
        && !used.iter().any(|other| Arc::ptr_eq(other, record))
    {
        used.push(Arc::clone(record));
    }
    let refuse = |message: String| Error::Argument { call: "testing", message };
    let outcome = match used.len() {
        0 | 1 => outcome,
        count => Err(refuse(format!("what is tested goes by {count} tapes; one is needed"))),
    };
    let y = together(comm, outcome)?;
    let ranks = exchange(comm, &[u8::from(!used.is_empty())])?;
    if ranks.iter().any(|rank| *rank != ranks[0]) {
        // All ranks of a tape must take part in its backward pass.
        let message = "what is tested goes by a tape on some of the ranks only; give the test the \
                       tape as its communicator";
        return Err(refuse(message.to_owned()));
    }
    Ok((y, used.pop()))
}

/// The gradients of `inputs` for a cotangent of `y`, by a pass of the tape if there is one.
fn pull_back(
    tape: Option<&Arc<Record>>,
    y: &Tensor,
    cotangent: &Tensor,
    inputs: &[&Tensor],
    create_graph: bool,
) -> Result<Vec<Tensor>> {
    let Some(tape) = tape else { return vjp(&[y], &[cotangent], inputs, create_graph) };
    tape.vjp("testing", &[(y, cotangent)], inputs, PassOptions { create_graph, keep_graph: false })
}

/// Removes the recorded calls from the tape, by a pass without roots, if no other pass does.
fn forget(comm: &Communicator, tape: Option<&Arc<Record>>) -> Result<()> {
    let pass = |tape: &Arc<Record>| tape.vjp("testing", &[], &[], PassOptions::default());
    together(comm, tape.map_or(Ok(()), |tape| pass(tape).map(drop)))
}

/// Returns the outcome of this rank if all ranks succeeded, and otherwise an error on every rank,
/// so that no rank goes on and waits for one that has returned.
fn together<T>(comm: &Communicator, outcome: Result<T>) -> Result<T> {
    let text = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let texts = exchange(comm, text.as_bytes())?;
    let failed = texts.iter().enumerate().filter(|(_, text)| !text.is_empty());
    let failed: Vec<String> = failed
        .map(|(rank, text)| format!("\n  {} on rank {rank}", String::from_utf8_lossy(text)))
        .collect();
    match outcome {
        Ok(_) if !failed.is_empty() => Err(Error::Mismatch { differences: failed.concat() }),
        outcome => outcome,
    }
}

/// The sum over all ranks, without the operators that are tested.
fn total(comm: &Communicator, value: f64) -> Result<f64> {
    let all = exchange(comm, &value.to_le_bytes())?;
    Ok(all
        .iter()
        .map(|bytes| bytes.as_slice().try_into().map_or(f64::NAN, f64::from_le_bytes))
        .sum())
}

/// The error that rounding may cause, relative to the scale of the result.
fn tolerance(kind: Kind) -> f64 {
    match kind {
        Kind::Double | Kind::ComplexDouble => 1e-13,
        Kind::Float | Kind::ComplexFloat => 1e-5,
        Kind::Half => 5e-4,
        Kind::BFloat16 => 4e-3,
        _ => 0.0,
    }
}

/// A description of the difference between a rank's result and the oracle's, if there is one.
fn mismatch(actual: &Tensor, expected: &Tensor) -> Result<Option<String>> {
    let described = |x: &Tensor| format!("{:?} of shape {:?}", x.kind(), x.size());
    if actual.f_kind()? != expected.f_kind()? || actual.size() != expected.size() {
        return Ok(Some(format!("{} instead of {}", described(actual), described(expected))));
    }
    let [device, expected_device] = [actual, expected].map(|x| Metadata::of(x).device());
    if device != expected_device {
        return Ok(Some(format!("on device {device} instead of {expected_device}")));
    }
    if Metadata::of(actual).count() == 0 {
        return Ok(None);
    }
    let tolerance = 10.0 * tolerance(actual.f_kind()?);
    let (actual, expected) = (widened(actual)?, widened(expected)?);
    // If terms cancel, rounding errors are relative to the terms. These are assumed to be as large
    // as the largest value, and at least 1, the scale of the random data.
    let largest = expected.f_abs()?.f_nan_to_num(0.0, 0.0, 0.0)?.f_max()?.f_double_value(&[])?;
    let scale = largest.max(1.0);
    let close = actual.f_allclose(&expected, tolerance, tolerance * scale, true)?;
    Ok((!close).then(|| {
        let values = |x: &Tensor| Vec::<f64>::try_from(x.flatten(0, -1)).unwrap_or_default();
        format!("{:?} instead of {:?}", values(&actual), values(&expected))
    }))
}

/// Panics on all ranks if any rank has a mismatch.
fn agree(comm: &Communicator, what: &str, mismatch: Option<String>) -> Result<()> {
    let reports = exchange(comm, mismatch.unwrap_or_default().as_bytes())?;
    let reports: Vec<String> = reports
        .iter()
        .enumerate()
        .filter(|(_, report)| !report.is_empty())
        .map(|(rank, report)| format!("rank {rank}: {}", String::from_utf8_lossy(report)))
        .collect();
    assert!(reports.is_empty(), "{what} differs from the serial one\n{}", reports.join("\n"));
    Ok(())
}

/// Every rank's tensor, in order of the ranks and on the device of this rank's. Shapes may differ; the
/// kind is the same on all ranks.
fn all_ranks(comm: &Communicator, x: &Tensor) -> Result<Vec<Tensor>> {
    let x = x.f_detach()?.f_resolve_conj()?.f_resolve_neg()?.f_contiguous()?;
    let kind = x.f_kind()?;
    let shape = x.size();
    let count = usize::try_from(Metadata::of(&x).count()).unwrap_or(0);
    let mut data = vec![0_u8; count * kind.elt_size_in_bytes()];
    x.f_copy_data_u8(&mut data, count)?;
    let header: Vec<u8> = shape.iter().flat_map(|extent| extent.to_le_bytes()).collect();
    let headers = exchange(comm, &header)?;
    let data = exchange(comm, &data)?;
    let tensor = |(header, data): (&Vec<u8>, &Vec<u8>)| -> Result<Tensor> {
        let extents = header.chunks_exact(8);
        let shape: Vec<i64> = extents.map(|e| e.try_into().map_or(0, i64::from_le_bytes)).collect();
        on_device_of(&x, &Tensor::f_from_data_size(data, &shape, kind)?)
    };
    headers.iter().zip(&data).map(tensor).collect()
}

/// Every rank's bytes. Collective.
#[track_caller]
fn exchange(comm: &Communicator, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
    let site = Site::new("testing");
    let turn = agree_on(site, comm)?;
    let all = comm.exchange(site, bytes);
    turn.made();
    all
}
