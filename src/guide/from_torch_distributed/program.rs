use std::process::ExitCode;

use mpi4tch::{DataParallel, Op, Universe, wait_all};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    mpi4tch::run(program)
}

pub fn program(universe: &Universe) -> mpi4tch::Result<()> {
    let world = universe.world();
    let (rank, size) = (world.rank(), world.size());

    // A communication with a derivative. All ranks have the same loss, which is to count once.
    let x = Tensor::from_slice(&[1.0 + f64::from(rank)]).set_requires_grad(true);
    let y = world.all_reduce(&x, Op::Sum)?;
    let loss = y.square().sum(Kind::Double) / f64::from(size);
    loss.f_backward()?;
    let (y, gradient) = (y.double_value(&[0]), x.grad().double_value(&[0]));
    println!("rank {rank}: y {y:.1}, gradient {gradient:.1}");
    assert_eq!(gradient, 2.0 * y);

    // Another one: each rank has one element for every rank.
    let elements = Tensor::arange(i64::from(size), (Kind::Double, Device::Cpu));
    let counts: Vec<i64> = (0..size).map(|_| 1).collect();
    let exchanged = world.all_to_all_v(&(elements + 10.0 * f64::from(rank)), 0, &counts)?;
    let exchanged = Vec::<f64>::try_from(&exchanged)?;
    println!("rank {rank}: exchanged {exchanged:?}");
    let ranks = (0..size).map(f64::from);
    assert_eq!(exchanged, ranks.map(|i| 10.0 * i + f64::from(rank)).collect::<Vec<_>>());

    // One without a derivative, in place.
    let mut z = x.detach().copy();
    world.all_reduce_(&mut z, Op::Max)?;
    assert_eq!(z.double_value(&[0]), f64::from(size));

    // Training, in steps of two batches. Gradients are averaged over the ranks.
    let mut store = nn::VarStore::new(Device::Cpu);
    let ones = nn::LinearConfig { ws_init: nn::Init::Const(1.0), bs_init: None, bias: false };
    let model = nn::linear(store.root(), 1, 1, ones);
    store.double();
    let parallel = DataParallel::new(&world, &store)?;
    let mut optimizer = nn::Sgd::default().build(&store, 0.05)?;
    let batch = Tensor::from_slice(&[1.0 + f64::from(rank) / f64::from(size)]).view([1, 1]);
    for _ in 0..3 {
        optimizer.zero_grad();
        let loss = |batch| (model.forward(batch) - 3.0).square().mean(Kind::Double);
        parallel.accumulate(&loss(&batch))?;
        parallel.backward(&loss(&(2.0 * &batch)))?;
        optimizer.step();
    }
    let weight = model.ws.double_value(&[0, 0]);
    println!("rank {rank}: weight {weight:.6}");
    assert!((weight - trained_on_one_process(size)).abs() < 1e-12);

    // A ring of messages. With a tape, world.tape(), it would have a derivative, too.
    let send = world.isend(&x.detach(), (rank + 1) % size, 0)?;
    let receive = world.irecv(&z, (rank + size - 1) % size, 0)?;
    let received = wait_all([send, receive])?[1].double_value(&[0]);
    println!("rank {rank}: received {received:.1}");
    assert_eq!(received, f64::from(1 + (rank + size - 1) % size));
    Ok(())
}

/// The weight after three steps by the mean of all ranks' gradients.
fn trained_on_one_process(size: i32) -> f64 {
    let batches = || (0..size).map(|rank| 1.0 + f64::from(rank) / f64::from(size));
    (0..3).fold(1.0, |w, _| {
        let both = batches().flat_map(|x| [x, 2.0 * x]);
        w - 0.05 * both.map(|x| 2.0 * (w * x - 3.0) * x).sum::<f64>() / f64::from(size)
    })
}
