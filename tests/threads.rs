//! Several threads, in a process of one rank that no launcher started.

use mpi4tch::{Communicator, Error, Op, ThreadLevel};
use tch::{Device, Kind, Tensor};

/// All-reduces until that fails.
fn until_error(comm: &Communicator) -> Error {
    let x = Tensor::ones([64], (Kind::Double, Device::Cpu));
    loop {
        if let Err(error) = comm.all_reduce(&x, Op::Max) {
            return error;
        }
    }
}

/// All in one test: MPI starts and ends once in a process, and on one thread.
#[test]
fn threads_share_mpi_and_see_its_end() {
    let universe = mpi4tch::initialize_with(ThreadLevel::Multiple).unwrap();
    let level = universe.library().thread_level();
    let world = universe.world();

    // The thread that initialized MPI is the one to finalize it.
    let error = std::thread::spawn(|| mpi4tch::initialize().unwrap_err()).join().unwrap();
    assert!(matches!(error, Error::Thread { .. }), "{error}");

    // The end waits for calls that are under way, and lets no more begin.
    let mine = world.duplicate().unwrap();
    let other = std::thread::spawn(move || until_error(&mine));
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(universe);
    let error = other.join().unwrap();
    if level >= ThreadLevel::Serialized {
        assert!(matches!(error, Error::Finalized { .. }), "{error}");
    }
    assert!(matches!(until_error(&world), Error::Finalized { .. }));
    let error = std::thread::spawn(|| mpi4tch::initialize().unwrap_err()).join().unwrap();
    assert!(matches!(error, Error::Finalized { .. }), "{error}");
}
