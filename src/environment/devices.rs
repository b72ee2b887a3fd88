//! `MPI4TCH_DEVICE`: whether MPI gets pointers to the memory of devices, or host memory to which tensors
//! are copied.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};

use mpi_sys::devices::{Devices, takes_pointers_to};

use crate::base::error::{Error, Result};

/// What `MPI4TCH_DEVICE` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// Tensors are copied to host memory and back.
    Staged,
    /// MPI gets pointers to the memory of devices.
    Direct,
}

const NAME: &str = "MPI4TCH_DEVICE";

impl Transfer {
    /// The value of `MPI4TCH_DEVICE`; `None` if it is not set.
    pub(super) fn from_environment() -> Result<Option<Self>> {
        std::env::var_os(NAME).map(Self::parse).transpose()
    }

    fn parse(value: OsString) -> Result<Self> {
        match value.to_str() {
            Some("staged") => Ok(Self::Staged),
            Some("direct") => Ok(Self::Direct),
            _ => Err(refused(&value.to_string_lossy(), "staged or direct")),
        }
    }
}

fn refused(value: &str, needed: &'static str) -> Error {
    Error::Setting { name: NAME, value: value.to_owned(), needed }
}

/// To the memory of which devices MPI gets pointers.
#[derive(Debug)]
pub(super) struct Reach {
    cuda: bool,
    level_zero: bool,
    /// For tests: all devices.
    all: AtomicBool,
}

/// Of libtorch's types of devices (`torch/headeronly/core/DeviceType.h`) those that MPI may know.
const CUDA: i8 = 1;
const HIP: i8 = 6;
const XPU: i8 = 12;

impl Reach {
    /// Those that MPI knows, unless tensors are to be staged; an error if none is known and direct calls
    /// are asked for.
    ///
    /// # Safety
    /// MPI is initialized, and can be called.
    pub(super) unsafe fn of(asked: Option<Transfer>) -> Result<Self> {
        // SAFETY: passed on to the caller.
        let knows =
            |devices| asked != Some(Transfer::Staged) && unsafe { takes_pointers_to(devices) };
        // A libtorch for ROCm calls its devices CUDA's, too, and no program has both.
        let (cuda, level_zero) =
            (knows(Devices::Cuda) || knows(Devices::Rocm), knows(Devices::LevelZero));
        if asked == Some(Transfer::Direct) && !cuda && !level_zero {
            let needed = "staged, or an MPI that takes pointers to the memory of devices, which this \
                          one does not";
            return Err(refused("direct", needed));
        }
        Ok(Self { cuda, level_zero, all: AtomicBool::new(false) })
    }

    pub(super) fn covers(&self, device_type: i8) -> bool {
        match device_type {
            CUDA | HIP if self.cuda => true,
            XPU if self.level_zero => true,
            _ => self.all.load(Ordering::Relaxed),
        }
    }

    pub(super) fn cover_all(&self, all: bool) {
        self.all.store(all, Ordering::Relaxed);
    }
}
