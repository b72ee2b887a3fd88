//! What a call on a tensor of a device costs: staged through the host, and direct, where MPI takes the
//! memory of the device, against the same call on a tensor in host memory. Beside it stand the copies
//! alone, from the device to pinned host memory and back: a staged call does both and the call on the
//! host, and the last column but one is its time over the sum of these three.
//!
//! Of a halo exchange, one cell around a block of n² doubles, the messages alone are copied. The copies of
//! the whole block stand beside it.
//!
//! Rank r takes the GPU `cuda:(r % count)`. Where there is none, the tests' stand-in takes its place, so
//! that the benchmark can be tried; its figures say nothing about a GPU.
//!
//! ```text
//! cargo bench --bench device           # on 2 ranks
//! ```

#[path = "side_by_side/turns.rs"]
mod turns;

use std::error::Error;

use mpi4tch::mpi_sys::devices::{Devices, takes_pointers_to};
use mpi4tch::{Communicator, Halo, Op, Rank, Result, testing};
use tch::{Cuda, Device, Kind, Tensor};
use turns::{Run, in_turns, median, on_ranks};

/// The bytes of a tensor, and how many calls of how many rounds are timed.
const SIZES: [(i64, usize, u32); 7] = [
    (8, 41, 100),
    (1 << 10, 41, 100),
    (1 << 14, 41, 50),
    (1 << 17, 41, 20),
    (1 << 20, 21, 10),
    (1 << 24, 11, 2),
    (1 << 28, 5, 1),
];

/// The rows of a block, and how many exchanges of how many rounds are timed.
const BLOCKS: [(i64, usize, u32); 4] = [(64, 41, 20), (512, 21, 20), (2048, 11, 5), (8192, 5, 2)];

type Call = fn(&Communicator, &Tensor) -> Result<Tensor>;

const CALLS: [(&str, Call); 3] = [
    ("all_reduce", |world, x| world.all_reduce(x, Op::Sum)),
    ("sendrecv", |world, x| {
        let (rank, size) = (world.rank(), world.size());
        world.sendrecv(x, (rank + 1) % size, x, (rank + size - 1) % size, 0)
    }),
    ("broadcast", |world, x| world.broadcast(x, 0)),
];

fn main() -> std::result::Result<(), Box<dyn Error>> {
    // SAFETY: the program has no other threads yet.
    unsafe { std::env::set_var("MPI4TCH_DEVICE", "staged") };
    on_ranks(2, |world| {
        let place = Place::of(world.rank());
        let has_direct = place.is_known_to_mpi();
        if world.rank() == 0 {
            println!("{}", place.description());
            if !has_direct {
                println!("direct is left out: MPI does not say that it takes the GPU's memory");
            }
            println!("median time of a call\n");
            println!(
                "     bytes  {:<12}{:>14}{:>14}{:>14}{:>14}{:>8}{:>14}",
                "call", "host", "to the host", "back", "staged", "of sum", "direct"
            );
        }
        SIZES.into_iter().try_for_each(|size| measure(world, &place, has_direct, size))?;
        if world.rank() == 0 {
            println!(
                "\n         n  {:<12}{:>14}{:>14}{:>14}{:>14}",
                "", "host", "to the host", "back", "staged"
            );
        }
        BLOCKS.into_iter().try_for_each(|block| measure_halo(world, &place, block))
    })
}

/// Times all calls on tensors of one size, and the copies, in turns.
fn measure(
    world: &Communicator,
    place: &Place,
    has_direct: bool,
    (bytes, rounds, calls): (i64, usize, u32),
) -> Result<()> {
    // Small integers, whose sums are the same in every order.
    let on_host = Tensor::f_randint(9, [bytes / 8], (Kind::Double, Device::Cpu))?;
    let on_device = place.put(&on_host)?;
    let (mut near, mut copy) = (place.near(&on_host)?, place.put(&on_host)?);
    let source = place.near(&on_host)?;
    let mut runs: Vec<Run<'_>> = vec![
        Box::new(|| Ok(near.f_copy_(&on_device)?)),
        Box::new(|| {
            copy.f_copy_(&source)?;
            place.finish(&copy)
        }),
    ];
    for (name, call) in CALLS {
        let expected = call(world, &on_host)?;
        let on_device = &on_device;
        let routed = move |direct| -> Result<Tensor> {
            testing::force_direct(direct)?;
            call(world, on_device)
        };
        let timed = move |direct| -> Run<'_> { Box::new(move || place.finish(&routed(direct)?)) };
        let on_host = &on_host;
        runs.push(Box::new(move || call(world, on_host).map(drop)));
        for direct in [false, true].into_iter().take(if has_direct { 2 } else { 1 }) {
            let result = place.fetch(&routed(direct)?)?;
            assert!(result.f_equal(&expected)?, "{name} is not what it is on the host");
            runs.push(timed(direct));
        }
    }
    let times = in_turns(world, rounds, calls, &mut runs.iter_mut().collect::<Vec<_>>())?;
    if world.rank() == 0 {
        let medians: Vec<_> = times.iter().map(|times| median(times)).collect();
        let (copies, calls) = medians.split_at(2);
        for ((name, _), times) in CALLS.iter().zip(calls.chunks(calls.len() / CALLS.len())) {
            let (host, staged) = (times[0], times[1]);
            let direct = times.get(2).map_or("–".to_owned(), |time| format!("{time:.2} µs"));
            println!(
                "{bytes:>10}  {name:<12}{host:>11.2} µs{:>11.2} µs{:>11.2} µs{staged:>11.2} µs{:>8.2}{direct:>14}",
                copies[0],
                copies[1],
                staged / (host + copies[0] + copies[1]),
            );
        }
    }
    Ok(())
}

/// Times the exchange of a halo on the host and on the device, and the copies of the whole block.
fn measure_halo(
    world: &Communicator,
    place: &Place,
    (n, rounds, calls): (i64, usize, u32),
) -> Result<()> {
    let Some(grid) = world.cartesian(&[0, 0], &[true, true], false)? else {
        unreachable!("the grid has all ranks")
    };
    let halo = |axis| Halo { axis, along: usize::from(axis == 1), before: 1, after: 1 };
    let halos = [halo(0), halo(1)];
    let on_host = Tensor::f_randint(9, [n, n], (Kind::Double, Device::Cpu))?;
    let on_device = place.put(&on_host)?;
    let (mut near, mut copy) = (place.near(&on_host)?, place.put(&on_host)?);
    let source = place.near(&on_host)?;
    testing::force_direct(false)?;
    let expected = grid.halo_exchange(&on_host, &halos)?;
    let result = place.fetch(&grid.halo_exchange(&on_device, &halos)?)?;
    assert!(result.f_equal(&expected)?, "a halo is not what it is on the host");
    let mut runs: Vec<Run<'_>> = vec![
        Box::new(|| grid.halo_exchange(&on_host, &halos).map(drop)),
        Box::new(|| Ok(near.f_copy_(&on_device)?)),
        Box::new(|| {
            copy.f_copy_(&source)?;
            place.finish(&copy)
        }),
        Box::new(|| place.finish(&grid.halo_exchange(&on_device, &halos)?)),
    ];
    let times = in_turns(world, rounds, calls, &mut runs.iter_mut().collect::<Vec<_>>())?;
    if world.rank() == 0 {
        print!("{n:>10}  {:<12}", "halo");
        times.iter().for_each(|times| print!("{:>11.2} µs", median(times)));
        println!();
    }
    Ok(())
}

/// The device of a rank.
enum Place {
    Gpu(usize),
    StandIn(i32),
}

impl Place {
    fn of(rank: Rank) -> Self {
        let count = Cuda::device_count();
        if count > 0 {
            let index = i64::from(rank) % count;
            return Self::Gpu(usize::try_from(index).expect("it is not negative"));
        }
        stand_in::register();
        // What MPI reads and writes when a call is direct.
        stand_in::set_reachable(true);
        Self::StandIn(rank % 2)
    }

    /// Whether MPI takes pointers to the memory of the device.
    fn is_known_to_mpi(&self) -> bool {
        match self {
            // SAFETY: the universe has initialized MPI on this thread.
            Self::Gpu(_) => unsafe { takes_pointers_to(Devices::Cuda) },
            Self::StandIn(_) => true,
        }
    }

    fn description(&self) -> String {
        match self {
            Self::Gpu(_) => format!("{} GPU(s) by CUDA", Cuda::device_count()),
            Self::StandIn(_) => {
                "no GPU: the stand-in of the tests, whose figures say nothing about one".to_owned()
            }
        }
    }

    /// A copy of the tensor on the device.
    fn put(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match *self {
            Self::Gpu(index) => x.f_to(Device::Cuda(index))?,
            Self::StandIn(index) => stand_in::to_device(x, index),
        })
    }

    /// A copy of the tensor in host memory that the device copies fastest.
    fn near(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match *self {
            Self::Gpu(index) => x.f_pin_memory(Device::Cuda(index))?,
            Self::StandIn(_) => x.copy(),
        })
    }

    /// A copy of the tensor in host memory.
    fn fetch(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gpu(_) => x.f_to(Device::Cpu)?,
            Self::StandIn(_) => stand_in::to_host(x),
        })
    }

    /// Waits until the device has done what it was given for this tensor.
    fn finish(&self, x: &Tensor) -> Result<()> {
        match *self {
            Self::Gpu(index) => Cuda::synchronize(i64::try_from(index).expect("it is small")),
            Self::StandIn(_) => drop(stand_in::to_host(&x.f_narrow(0, 0, 1)?)),
        }
        Ok(())
    }
}
