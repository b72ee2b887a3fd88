//! The cost of a tape: of an operation on a tape, against one without; and of a backward pass of
//! the tape, in which the ranks compare what they recorded, against libtorch's own, with calls on
//! 1, 2 and 8 communicators. "Raw" means without a tape here.
//!
//! ```text
//! cargo bench --bench tape                 # on 2 ranks
//! ```

mod side_by_side;

use std::error::Error;

use mpi4tch::{Communicator, Op, PROC_NULL};
use side_by_side::{Pair, compare};
use tch::{Device, Kind, Tensor};

fn main() -> Result<(), Box<dyn Error>> {
    side_by_side::run(2, [()], measure)
}

fn measure(world: &Communicator, (): ()) -> mpi4tch::Result<()> {
    let x = Tensor::ones([1], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let comms: Vec<Communicator> =
        (0..8).map(|_| world.duplicate()).collect::<mpi4tch::Result<_>>()?;
    let forward = |comm: &Communicator| -> mpi4tch::Result<()> {
        for _ in 0..100 {
            let _ = comm.all_reduce(&x, Op::Sum)?;
        }
        Ok(())
    };
    let mut pairs = Vec::new();
    pairs.push(Pair {
        work: "100 × all_reduce",
        raw: Box::new(|| forward(world)),
        ours: Box::new(|| {
            let tape = world.tape();
            forward(&tape)
        }),
    });
    for count in [1, 2, 8] {
        let work = match count {
            1 => "8 calls on 1 communicator, and back",
            2 => "8 calls on 2, and back",
            _ => "8 calls on 8, and back",
        };
        let comms = &comms[..count];
        // A send to PROC_NULL takes no time, so the rest of the pass is measured.
        let sent = |comms: &[Communicator]| -> mpi4tch::Result<Tensor> {
            let mut y = x.shallow_clone();
            for i in 0..8 {
                y = comms[i % comms.len()].send(&y, PROC_NULL, 0)?;
            }
            Ok(y.sum(Kind::Double))
        };
        pairs.push(Pair {
            work,
            raw: Box::new(move || Ok(sent(comms)?.f_backward()?)),
            ours: Box::new(move || {
                let tape = world.tape();
                let comms = comms.iter().map(|comm| tape.on(comm));
                let comms = comms.collect::<mpi4tch::Result<Vec<_>>>()?;
                tape.backward(&sent(&comms)?)
            }),
        });
    }
    compare(world, 8, 20, &mut pairs)
}
