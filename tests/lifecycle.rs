//! MPI's start and end, in a process of one rank that no launcher started.

use std::process::Command;

use mpi4tch::mpi_sys::{self, Vendor};
use mpi4tch::{Communicator, Error, Op, Replicated};
use tch::{Kind, Tensor};

/// All in one test: MPI starts and ends once in a process, and on one thread.
#[test]
fn from_start_to_end() {
    // SAFETY: MPI's own communicator, as soon as there is MPI.
    let taken_in = || unsafe { Communicator::from_raw(mpi_sys::MPI_COMM_WORLD) };
    let error = taken_in().unwrap_err();
    let early = "from_raw: MPI has not been initialized; call mpi4tch::initialize first";
    assert_eq!(error.to_string(), early);

    let universe = mpi4tch::initialize().unwrap();
    let library = universe.library().clone();
    assert_eq!(library.vendor(), mpi_sys::loaded_vendor());
    if mpi_sys::VENDOR != Vendor::StandardAbi {
        assert_eq!(library.standard(), mpi_sys::STANDARD);
        assert!(library.version().contains(mpi_sys::LIBRARY_VERSION), "{library:?}");
    }

    let world = universe.world();
    assert_eq!((world.rank(), world.size()), (0, 1));
    let x = Tensor::from_slice(&[2.0]).set_requires_grad(true);
    let loss = world.all_reduce(&x, Op::Sum).unwrap().sum(Kind::Double);

    // A second universe is the same MPI, which ends with the last.
    let second = mpi4tch::initialize().unwrap();
    drop(universe);
    loss.f_backward().unwrap();
    second.world().barrier().unwrap();

    let duplicate = world.duplicate().unwrap();
    let part = duplicate.split(Some(0), 0).unwrap().unwrap();
    let theirs = taken_in().unwrap();
    let replicated = Replicated::assume(&world, &x).unwrap();
    let late = second.world().all_reduce(&x, Op::Max).unwrap();
    let numbers = [&world, &duplicate, &theirs].map(Communicator::to_fortran);
    assert_eq!(Communicator::from_fortran(numbers[1]).unwrap().size(), 1);
    drop(second);
    // MPI aborts a job that asks it for a handle's number now.
    assert_eq!([&world, &duplicate, &theirs].map(Communicator::to_fortran), numbers);
    let error = world.all_reduce(&x, Op::Sum).unwrap_err();
    assert!(matches!(error, Error::Finalized { .. }));
    assert_eq!(error.to_string(), "all_reduce: MPI has been finalized");
    let error = Replicated::sum(&world, &x).unwrap_err().to_string();
    assert_eq!(error, "Replicated::sum: MPI has been finalized");
    // What makes no MPI call is still possible; its adjoint is not.
    let varying = replicated.vary().unwrap();
    let error = varying.sum(Kind::Double).f_backward().unwrap_err().to_string();
    assert!(error.contains("Replicated::sum: MPI has been finalized"), "{error}");
    assert!(matches!(world.duplicate(), Err(Error::Finalized { .. })));
    assert!(matches!(world.barrier(), Err(Error::Finalized { .. })));
    assert!(matches!(part.split(None, 0), Err(Error::Finalized { .. })));
    assert!(matches!(theirs.split_shared(), Err(Error::Finalized { .. })));
    assert!(matches!(taken_in(), Err(Error::Finalized { .. })));
    // Their contexts went with MPI: dropping them is harmless, in any order.
    drop(duplicate);
    drop((part, theirs));
    // In a backward pass too, where it comes out of libtorch.
    let error = late.sum(Kind::Double).f_backward().unwrap_err().to_string();
    assert!(error.contains("all_reduce: MPI has been finalized"), "{error}");
    let error = mpi4tch::initialize().unwrap_err();
    assert_eq!(error.to_string(), "initialize: MPI has been finalized");
}

/// The variables by which the launchers of another implementation count the ranks.
fn foreign() -> &'static str {
    if mpi_sys::loaded_vendor() == Vendor::OpenMpi { "PMI" } else { "OMPI_COMM_WORLD" }
}

/// The error of a program that another implementation's launcher started.
fn alone() -> String {
    format!(
        "initialize: {}_SIZE says that 3 ranks were started, but each is alone in its world: the \
         launcher is not one of {}, which the program is compiled for; start it with {}, or set \
         MPI4TCH_ALLOW_SINGLETONS=1 if that is meant",
        foreign(),
        mpi_sys::loaded_vendor(),
        if mpi_sys::VENDOR == Vendor::StandardAbi { "its mpiexec" } else { mpi_sys::MPIEXEC }
    )
}

/// Each rank of a program that another implementation's launcher started is alone in its world,
/// while the environment says that there are several.
#[test]
fn the_wrong_launcher_is_an_error() {
    let run = |size: &str, allowed: &str| {
        let program = std::env::current_exe().unwrap();
        let output = Command::new(program)
            .args(["--exact", "from_start_to_end", "--nocapture"])
            .env(format!("{}_SIZE", foreign()), size)
            .env(format!("{}_RANK", foreign()), "0")
            .env("MPI4TCH_ALLOW_SINGLETONS", allowed)
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    for allowed in ["", "0"] {
        let (passed, printed) = run("3", allowed);
        assert!(!passed && printed.contains(&alone()), "{printed}");
    }
    let (passed, printed) = run("3", "yes");
    let told = "initialize: MPI4TCH_ALLOW_SINGLETONS is \"yes\"; it may be 0 or 1";
    assert!(!passed && printed.contains(told), "{printed}");
    for (size, allowed) in [("3", "1"), ("1", ""), ("1", "yes")] {
        let (passed, printed) = run(size, allowed);
        assert!(passed && printed.is_empty(), "{printed}");
    }
}

/// The same with a launcher of the other implementation, where the machine has one.
#[test]
fn the_launcher_of_another_mpi_fails_the_job() {
    let other = if mpi_sys::loaded_vendor() == Vendor::OpenMpi { "mpich" } else { "openmpi" };
    let mut command = Command::new(format!("mpiexec.{other}"));
    command.args(["-n", "3"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "from_start_to_end", "--nocapture"]);
    for (name, value) in harness::mpiexec(3).get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let Ok(output) = command.output() else { return };
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success(), "{printed}");
    // MPICH 5 refuses to start there by itself.
    let is_told = printed.contains(&alone()) || printed.contains("unsupported PMI version");
    assert!(is_told, "{printed}");
}
