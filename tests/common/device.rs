//! The device that the tensors of a test are on: `MPI4TCH_TEST_DEVICE` is `cpu`, `stand-in` or
//! `cuda`; `cpu` unless set.

use std::sync::OnceLock;
use std::time::Duration;

use mpi4tch::{Rank, testing};
use tch::{Cuda, Device, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Host,
    StandIn(i32),
    Cuda(usize),
}

/// Host memory, unless another place is chosen.
static PLACE: OnceLock<Place> = OnceLock::new();

/// Reads the variable. From now on tensors are placed on this rank's device: ranks that follow each
/// other have different ones. Before any backward pass, since libtorch then starts a thread for each
/// device that it knows.
pub fn choose(rank: Rank) {
    let number = rank.unsigned_abs() as usize;
    let place = match std::env::var("MPI4TCH_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Place::Host,
        Ok("stand-in") => {
            start_stand_in(Duration::from_micros(200));
            Place::StandIn(rank % 2)
        }
        Ok("cuda") => {
            let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
            assert_ne!(
                count, 0,
                "MPI4TCH_TEST_DEVICE is `cuda`, and libtorch finds no CUDA device"
            );
            Place::Cuda(number % count)
        }
        Ok(other) => panic!("MPI4TCH_TEST_DEVICE is `{other}`, not `cpu`, `stand-in` or `cuda`"),
    };
    PLACE.set(place).expect("the device is chosen once");
    testing::place_random(placed);
}

/// The stand-in, whose work is done late, and whose pinned memory is given to the next who asks as soon
/// as it is free: a read or write that does not wait for the device is then wrong.
pub fn start_stand_in(delay: Duration) {
    stand_in::register();
    stand_in::set_delay(delay);
    stand_in::set_forgetful(true);
}

/// Whether tensors are in host memory.
pub fn is_host() -> bool {
    PLACE.get().is_none_or(|place| *place == Place::Host)
}

/// The device of the test, if it is one that tch has a name for.
pub fn in_tch() -> Option<Device> {
    match PLACE.get() {
        None | Some(Place::Host) => Some(Device::Cpu),
        Some(Place::StandIn(_)) => None,
        Some(Place::Cuda(index)) => Some(Device::Cuda(*index)),
    }
}

/// The tensor on the device of the test; a leaf, if it is one.
pub fn placed(x: Tensor) -> Tensor {
    let to_device: &dyn Fn(&Tensor) -> Tensor = match PLACE.get() {
        None | Some(Place::Host) => return x,
        Some(Place::StandIn(index)) => &|x| stand_in::to_device(x, *index),
        Some(Place::Cuda(index)) => &|x| x.to_device(Device::Cuda(*index)),
    };
    if x.is_leaf() {
        to_device(&x.detach()).set_requires_grad(x.requires_grad())
    } else {
        to_device(&x)
    }
}

/// The tensor in host memory; recorded by autograd.
pub fn host(x: &Tensor) -> Tensor {
    x.to_device(Device::Cpu)
}

/// Whether tensors are on a device, where a test is left out for this reason. Says so.
pub fn left_out_on_devices(reason: &str) -> bool {
    let is_there = !is_host();
    if is_there {
        println!("left out on a device: {reason}");
    }
    is_there
}

/// Whether tensors are on the stand-in, where a test is left out for this reason. Says so.
pub fn left_out_on_the_stand_in(reason: &str) -> bool {
    let is_there = in_tch().is_none();
    if is_there {
        println!("left out on the stand-in: {reason}");
    }
    is_there
}
