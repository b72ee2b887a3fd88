//! The limits of MPI libraries, by version, and of tests. A test that needs more is left out there, by
//! name.

use mpi4tch::mpi_sys::{self, Vendor};

use super::device;

/// What a test may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A message of a rank to itself that is longer than what is received into, or ends within an
    /// element.
    MessageToOneselfThatDoesNotFit,
    /// A message that ends within an element of what is received into, from another rank.
    MessageThatEndsWithinAnElement,
}

/// A limit of the libraries of a vendor whose version texts contain `version`.
struct Known {
    limit: Limit,
    vendor: Vendor,
    version: &'static str,
    reason: &'static str,
}

const KNOWN: [Known; 2] = [
    Known {
        limit: Limit::MessageToOneselfThatDoesNotFit,
        vendor: Vendor::Mpich,
        version: "",
        reason: "MPICH 4.0.2 ends the job, in plain C too; later ones were not asked",
    },
    // No report is known; https://github.com/pmodels/mpich/issues/7881 is about the same check.
    Known {
        limit: Limit::MessageThatEndsWithinAnElement,
        vendor: Vendor::Mpich,
        version: "5.0.2",
        reason: "an assertion of MPICH 5.0.2 fails (typerep_yaksa_pack.c), in plain C too",
    },
];

/// Whether the library that is loaded has this limit. Says so, with the reason.
pub fn has(limit: Limit) -> bool {
    let universe = mpi4tch::initialize().expect("MPI is there");
    let version = universe.library().version();
    let known = KNOWN.into_iter().find(|known| {
        known.limit == limit
            && known.vendor == mpi_sys::loaded_vendor()
            && version.contains(known.version)
    });
    if let Some(known) = &known {
        println!("left out: {limit:?}: {}", known.reason);
    }
    known.is_some()
}

/// Whether tensors are on a device, where a test is left out for this reason. Says so.
pub fn left_out_on_devices(reason: &str) -> bool {
    let is_there = !device::is_host();
    if is_there {
        println!("left out on a device: {reason}");
    }
    is_there
}

/// Whether tensors are on the stand-in, where a test is left out for this reason. Says so.
pub fn left_out_on_the_stand_in(reason: &str) -> bool {
    let is_there = device::in_tch().is_none();
    if is_there {
        println!("left out on the stand-in: {reason}");
    }
    is_there
}
