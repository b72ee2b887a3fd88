//! The limits of MPI libraries, by version. A test that needs more is left out there, by name.

use mpi4tch::mpi_sys::{self, Vendor};

/// What a test may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// A message of a rank to itself that is longer than what is received into, or ends within an
    /// element.
    MessageToOneselfThatDoesNotFit,
    /// A message that ends within an element of what is received into, from another rank.
    MessageThatEndsWithinAnElement,
    /// A large message that is under way until it is received.
    LargeMessageThatWaits,
}

/// A limit of the libraries of a vendor whose version texts contain `version`.
struct Known {
    limit: Limit,
    vendor: Vendor,
    version: &'static str,
    reason: &'static str,
}

const KNOWN: [Known; 3] = [
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
    Known {
        limit: Limit::LargeMessageThatWaits,
        vendor: Vendor::Mpich,
        version: "Intel(R) MPI Library 2021.19",
        reason: "Intel MPI 2021.19 takes messages of any size while the receiver is in MPI, in plain C too",
    },
];

/// Whether the library that is loaded has this limit. Says so, with the reason.
pub fn has(limit: Limit) -> bool {
    let version = mpi_sys::library_version();
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
