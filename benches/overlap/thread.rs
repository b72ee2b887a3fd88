//! A thread that calls MPI now and then.

use std::thread::JoinHandle;
use std::time::Duration;

use mpi4tch::{Communicator, Result, Test};
use tch::Tensor;

const PAUSE: Duration = Duration::from_micros(100);
const TAG: i32 = 77;

/// A thread that looks at a receive every [`PAUSE`], until its message comes. MPI then goes on with
/// all that was started, while the program computes.
pub struct Caller {
    comm: Communicator,
    thread: JoinHandle<Result<()>>,
}

impl Caller {
    pub fn start(comm: &Communicator) -> Result<Self> {
        let mut request = comm.irecv(&Tensor::from(0.0), comm.rank(), TAG)?;
        let thread = std::thread::spawn(move || {
            while let Test::Pending(pending) = request.test()? {
                request = pending;
                std::thread::sleep(PAUSE);
            }
            Ok(())
        });
        Ok(Self { comm: comm.clone(), thread })
    }

    /// Sends the message.
    pub fn end(self) -> Result<()> {
        let _ = self.comm.send(&Tensor::from(0.0), self.comm.rank(), TAG)?;
        self.thread.join().expect("it does not panic")
    }
}
