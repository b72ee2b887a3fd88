//! What holds in a program that uses rsmpi too, whichever of the two initialized MPI.

use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicI32, Ordering};

use mpi::collective::SystemOperation;
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator as _, CommunicatorCollectives, Destination, Source};
use mpi4tch::{Communicator, Error, Op, Result, Universe, mpi_sys, testing};
use tch::{Kind, Tensor};

/// How often MPI has been initialized, and finalized, by anyone.
static STARTS: AtomicI32 = AtomicI32::new(0);
static ENDS: AtomicI32 = AtomicI32::new(0);

/// Stands before MPI's own, as its profiling interface allows.
#[unsafe(no_mangle)]
extern "C" fn MPI_Init_thread(
    argc: *mut c_int,
    argv: *mut *mut *mut c_char,
    required: c_int,
    provided: *mut c_int,
) -> c_int {
    STARTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's arguments, passed on.
    unsafe { mpi_sys::PMPI_Init_thread(argc, argv, required, provided) }
}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn MPI_Finalize() -> c_int {
    ENDS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: as for MPI's own.
    unsafe { mpi_sys::PMPI_Finalize() }
}

/// Both libraries at work on one MPI.
pub struct Both {
    pub ours: Option<Universe>,
    pub theirs: Option<mpi::environment::Universe>,
}

impl Both {
    pub fn started(self) -> (Self, i32, i32) {
        assert_eq!(STARTS.load(Ordering::Relaxed), 1);
        let world = SimpleCommunicator::world();
        let (rank, size) = (world.rank(), world.size());
        assert_eq!((self.world().rank(), self.world().size()), (rank, size));
        (self, rank, size)
    }

    fn world(&self) -> Communicator {
        self.ours.as_ref().expect("lives until the end").world()
    }
}

/// Whoever initialized MPI finalizes it, once.
impl Drop for Both {
    fn drop(&mut self) {
        let world = self.world();
        let theirs_to_end = self.theirs.is_some();
        self.ours.take();
        assert_eq!(mpi::environment::is_finalized(), !theirs_to_end);
        assert_eq!(ENDS.load(Ordering::Relaxed), i32::from(!theirs_to_end));
        assert!(matches!(world.barrier(), Err(Error::Finalized { .. })));
        if theirs_to_end {
            // rsmpi's MPI goes on.
            SimpleCommunicator::world().barrier();
        }
        self.theirs.take();
        assert!(mpi::environment::is_finalized());
        assert_eq!((STARTS.load(Ordering::Relaxed), ENDS.load(Ordering::Relaxed)), (1, 1));
    }
}

pub fn tests() -> Vec<harness::Test<Both>> {
    harness::tests![
        a_receive_goes_on_in_their_calls,
        from_theirs,
        from_theirs_split,
        from_theirs_cartesian,
        to_theirs,
        there_and_back,
        messages_do_not_meet
    ]
}

fn sum(theirs: &SimpleCommunicator, own: f64) -> f64 {
    let mut sum = 0.0;
    theirs.all_reduce_into(&own, &mut sum, SystemOperation::sum());
    sum
}

/// The same sum by both, and a backward pass on ours.
fn agree(theirs: &SimpleCommunicator, ours: &Communicator) -> Result<()> {
    assert_eq!((ours.rank(), ours.size()), (theirs.rank(), theirs.size()));
    let own = f64::from(ours.rank()) + 0.5;
    let x = Tensor::from_slice(&[own]).set_requires_grad(true);
    let y = ours.all_reduce(&x, Op::Sum)?;
    assert_eq!(y.double_value(&[0]), sum(theirs, own));
    (&y * &y * own).sum(Kind::Double).f_backward()?;
    // Each rank's loss has the derivative 2 y own.
    let cotangent = 2.0 * y.double_value(&[0]) * own;
    assert!((x.grad().double_value(&[0]) - sum(theirs, cotangent)).abs() < 1e-9);
    let x = testing::random(ours, &[3], Kind::Double)?;
    testing::assert_adjoint(ours, &x, |x| ours.scan(x, Op::Sum))
}

fn from_theirs(_: &Both) -> Result<()> {
    let theirs = SimpleCommunicator::world();
    agree(&theirs, &Communicator::try_from(&theirs)?)?;
    let this = Communicator::try_from(&SimpleCommunicator::self_comm())?;
    assert_eq!((this.rank(), this.size()), (0, 1));
    Ok(())
}

fn from_theirs_split(_: &Both) -> Result<()> {
    let world = SimpleCommunicator::world();
    let color = Color::with_value(world.rank() % 2);
    let theirs = world.split_by_color_with_key(color, -world.rank()).expect("has a color");
    let ours = Communicator::try_from(&theirs)?;
    agree(&theirs, &ours)?;
    // Theirs is theirs to free, and ours outlives it.
    drop(theirs);
    let sizes = ours.all_gather(&Tensor::from_slice(&[1]), 0)?;
    assert_eq!(sizes.size(), [i64::from(ours.size())]);
    Ok(())
}

fn from_theirs_cartesian(_: &Both) -> Result<()> {
    let world = SimpleCommunicator::world();
    let grid = world
        .create_cartesian_communicator(&[world.size()], &[true], false)
        .expect("holds all ranks");
    let ours = Communicator::try_from(&grid)?;
    agree(&world, &ours)
}

fn to_theirs(both: &Both) -> Result<()> {
    let world = both.world();
    let half = world.split(Some(world.rank() % 2), -world.rank())?.expect("has a color");
    for ours in [&world, &half] {
        let theirs = SimpleCommunicator::try_from(ours)?;
        agree(&theirs, ours)?;
    }
    Ok(())
}

fn there_and_back(both: &Both) -> Result<()> {
    let ours = both.world();
    let theirs = SimpleCommunicator::try_from(&ours)?;
    agree(&theirs, &Communicator::try_from(&theirs)?)
}

/// A message of theirs waits while ours go their way.
fn messages_do_not_meet(both: &Both) -> Result<()> {
    let ours = both.world();
    let theirs = SimpleCommunicator::try_from(&ours)?;
    let next = (ours.rank() + 1) % ours.size();
    let previous = (ours.rank() + ours.size() - 1) % ours.size();
    let own = ours.rank();
    mpi::request::scope(|scope| {
        let request = theirs.process_at_rank(next).immediate_send(scope, &own);
        let sum = ours.all_reduce(&Tensor::from_slice(&[1]), Op::Sum);
        let (received, _) = theirs.process_at_rank(previous).receive::<i32>();
        request.wait();
        assert_eq!(received, previous);
        assert_eq!(sum?, Tensor::from_slice(&[ours.size()]));
        Ok(())
    })
}

/// The first test, as a conversion would change how receives are made, too. A blocking send ends although
/// the rank that receives is in rsmpi's barrier.
fn a_receive_goes_on_in_their_calls(both: &Both) -> Result<()> {
    let ours = both.ours.as_ref().expect("it is there").world();
    let theirs = SimpleCommunicator::world();
    let (right, left) =
        ((ours.rank() + 1) % ours.size(), (ours.rank() + ours.size() - 1) % ours.size());
    let x = Tensor::ones([1 << 17], (Kind::Double, tch::Device::Cpu));
    let request = ours.irecv(&x.zeros_like(), left, 3)?;
    let sends = ours.rank() % 2 == 1;
    if sends {
        let _ = ours.send(&x, right, 3)?;
    }
    theirs.barrier();
    if !sends {
        let _ = ours.send(&x, right, 3)?;
    }
    theirs.barrier();
    assert_eq!(request.wait()?, x);
    Ok(())
}
