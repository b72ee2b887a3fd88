//! A pass of `DataParallel` makes one call for each bucket, and two small ones around them.

use mpi4tch::{DataParallel, DataParallelOptions, Op, Result};
use tch::{Kind, Tensor};

use crate::common::Context;
use crate::profiling::{Call, calls, names};
use crate::{after_agreement, matrix};

pub fn tests() -> Vec<harness::Test<Context>> {
    harness::tests![a_call_for_each_bucket]
}

fn a_call_for_each_bucket(context: &Context) -> Result<()> {
    let world = &context.world;
    // Of 1 MiB, and of 24, 16 and 8 bytes.
    let sizes = [1 << 17, 3, 2, 1];
    let w: Vec<Tensor> = sizes
        .iter()
        .map(|size| Ok(matrix(context, 1, *size)?.set_requires_grad(true)))
        .collect::<Result<_>>()?;
    let options = DataParallelOptions { first_bucket_bytes: 20, ..Default::default() };
    let model = DataParallel::with_options(world, &w, &[], options)?;
    // From the last parameter to the first: the first buffer is full with two of them.
    let volumes = [24, 1 << 20, 24];
    let loss = || w.iter().map(|w| w.square().sum(Kind::Double)).sum::<Tensor>();
    let check = |made: Vec<Call>, sum: &str| {
        let mut made = after_agreement(context, made);
        made.retain(|call| call.name != "MPI_Test");
        assert_eq!(names(&made), [sum; 5]);
        assert_eq!(made.remove(0).volume, 8, "a hash of the parameters");
        let mut sums: Vec<i64> = made[..3].iter().map(|call| call.volume).collect();
        sums.sort_unstable();
        let mut expected = volumes;
        expected.sort_unstable();
        assert_eq!(sums, expected);
        assert_eq!(made[3].volume, 8, "a bit for each parameter");
    };
    let share_memory = world.split_shared()?.size() == world.size();
    let sum = if share_memory { "MPI_Allreduce" } else { "MPI_Iallreduce" };
    check(calls(|| model.backward(&loss()))?.1, sum);
    // Large gradients are summed where they lie.
    let (_, made) = calls(|| model.backward(&loss()))?;
    let place = w[0].grad().data_ptr().addr();
    assert!(made.iter().any(|call| call.buffers[1] == place), "in place");

    // Another call of the backward pass may be waited for while a sum is under way.
    let one = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    let _call = world.all_reduce(&one, Op::Sum)?;
    check(calls(|| model.backward(&loss()))?.1, "MPI_Iallreduce");
    // The first such pass has shown how often each gradient is added to. In the next one, each hook
    // gives MPI a chance to go on.
    let (_, made) = calls(|| model.backward(&loss()))?;
    let starts: Vec<&Call> = made.iter().filter(|call| call.name == "MPI_Iallreduce").collect();
    let [_, first, _, last, _] = starts[..] else { panic!("{made:?}") };
    assert!(first.tests < last.tests, "{made:?}");
    check(made, "MPI_Iallreduce");
    Ok(())
}
