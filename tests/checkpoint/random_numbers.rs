//! A checkpoint that is run again draws the same random numbers, and the program's go on undisturbed.

use harness::Test;
use mpi4tch::{Communicator, Op, Result};
use tch::{Kind, Tensor};

use super::{Context, assert_close, leaf, variable};

pub fn tests() -> Vec<Test<Context>> {
    harness::tests![masks_are_the_same_again, later_numbers_are_not_disturbed]
}

fn noisy(comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let mask = x.rand_like().gt(0.5).to_kind(Kind::Double);
    let y = comm.all_reduce(&(x * mask), Op::Mean)?;
    Ok(y.dropout(0.5, true).sin() + x)
}

fn masks_are_the_same_again(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 20)?;
    for slots in [1, 2, 3, 8] {
        let plain = leaf(&x);
        tch::manual_seed(7 + i64::from(tape.rank()));
        let y = (0..8).try_fold(plain.shallow_clone(), |y, _| noisy(&tape, &y))?;
        let y = noisy(&tape, &y)?;
        tape.backward(&y.sum(Kind::Double))?;
        let kept = leaf(&x);
        tch::manual_seed(7 + i64::from(tape.rank()));
        let comm = Communicator::clone(&tape);
        let z =
            tape.checkpoint_steps(&[&kept], 8, slots, move |_, x| Ok(vec![noisy(&comm, &x[0])?]))?;
        let comm = Communicator::clone(&tape);
        let z = tape.checkpoint(&[&z[0]], move |x| Ok(vec![noisy(&comm, &x[0])?]))?;
        assert_close(&[z[0].detach()], &[y.detach()]);
        tape.backward(&z[0].sum(Kind::Double))?;
        assert_close(&[kept.grad()], &[plain.grad()]);
    }
    Ok(())
}

fn later_numbers_are_not_disturbed(context: &Context) -> Result<()> {
    let tape = context.world.tape();
    let x = variable(&tape, 20)?;
    let mut drawn = Vec::new();
    for goes_back in [false, true] {
        tch::manual_seed(11);
        let comm = Communicator::clone(&tape);
        let y = tape.checkpoint_steps(&[&x], 5, 2, move |_, x| Ok(vec![noisy(&comm, &x[0])?]))?;
        let between = x.detach().rand_like();
        if goes_back {
            tape.backward(&y[0].sum(Kind::Double))?;
        }
        drawn.push([between, x.detach().rand_like()]);
    }
    assert_close(&drawn[0], &drawn[1]);
    tape.backward(None)
}
