//! Tests which names are bound: every name that this MPI's `mpi.h` declares, but for those
//! that are listed here with the reason; and with them every name of the standard that this
//! MPI has.
//!
//! `bound.md` says what is bound of each MPI. This test compares what it says of this one, or
//! writes that if `MPI4TCH_TEST_WRITE` is set.

mod header;
#[path = "../../build/macros.rs"]
#[expect(dead_code, reason = "the build script has more uses for it")]
mod macros;
mod page;
#[path = "../../build/standard.rs"]
#[expect(dead_code, reason = "the build script has more uses for it")]
mod standard;

use header::Header;

/// Names that an `mpi.h` declares and that are not bound.
struct Unbound {
    reason: &'static str,
    /// Whether it is the reason for a name of this header.
    applies: fn(&str, &Header) -> bool,
}

const UNBOUND: [Unbound; 3] = [
    Unbound {
        reason: "MPI 3.0 removed them; in their place `mpi.h` has error messages",
        applies: |name, _| REMOVED.contains(&name),
    },
    Unbound {
        reason: "they only say which headers were included",
        applies: |name, _| {
            ["MPI_FILE_DEFINED", "MPI_INCLUDED", "MPI_PROTO_H_INCLUDED"].contains(&name)
        },
    },
    Unbound {
        reason: "they number the functions for QMPI, MPICH's interface for tools, which is not bound",
        applies: |name, header| {
            let function = name.strip_suffix("_T").unwrap_or_default();
            header.declares_in_any_case(function) || name == "MPI_LAST_FUNC_T"
        },
    },
];

/// What MPI 3.0 removed.
const REMOVED: [&str; 15] = [
    "MPI_Address",
    "MPI_COMBINER_HINDEXED_INTEGER",
    "MPI_COMBINER_HVECTOR_INTEGER",
    "MPI_COMBINER_STRUCT_INTEGER",
    "MPI_Errhandler_create",
    "MPI_Errhandler_get",
    "MPI_Errhandler_set",
    "MPI_LB",
    "MPI_Type_extent",
    "MPI_Type_hindexed",
    "MPI_Type_hvector",
    "MPI_Type_lb",
    "MPI_Type_struct",
    "MPI_Type_ub",
    "MPI_UB",
];

/// The names that `mpi.h` declares and that are not bound, by their reason; those without a
/// reason come last.
fn unbound(header: &Header) -> (Vec<(&'static str, Vec<&str>)>, Vec<&str>) {
    let names = header.declared.iter().filter(|name| !header.bound.contains(*name));
    let mut rest: Vec<&str> = names.map(String::as_str).collect();
    let mut reasons = Vec::new();
    for Unbound { reason, applies } in UNBOUND {
        let (there, others) = rest.into_iter().partition(|name| applies(name, header));
        reasons.push((reason, there));
        rest = others;
    }
    reasons.retain(|(_, names): &(_, Vec<_>)| !names.is_empty());
    (reasons, rest)
}

#[test]
#[cfg_attr(feature = "abi", ignore = "of mpi.h, and not of mpi_abi.h")]
fn every_name_of_the_header_is_bound() {
    let header = Header::read();
    let (_, rest) = unbound(&header);
    assert!(rest.is_empty(), "declared by mpi.h but not bound: {rest:?}");
}

/// The other tests would pass if nothing was read.
#[test]
#[cfg_attr(feature = "abi", ignore = "of mpi.h, and not of mpi_abi.h")]
fn the_header_and_the_bindings_are_read() {
    let header = Header::read();
    for name in ["MPI_Send", "PMPI_Send", "MPI_COMM_WORLD", "MPI_SOURCE", "MPI_Comm_c2f"] {
        assert!(header.declared.contains(name), "{name}");
        assert!(header.bound.contains(name), "{name}");
    }
    let names = standard::names();
    let old = names.iter().filter(|(_, entry)| entry.since == (3, 1));
    let missing = old.filter(|(name, _)| !header.bound.contains(**name));
    // What is optional, and what is for Fortran.
    assert!(missing.count() < 20);
}

/// Names in the bindings that neither `mpi.h` nor the shim has would be a mistake of the build.
#[test]
#[cfg_attr(feature = "abi", ignore = "of mpi.h, and not of mpi_abi.h")]
fn every_name_that_is_bound_is_declared() {
    let header = Header::read();
    let more: Vec<_> = header.bound.difference(&header.declared).collect();
    assert!(more.is_empty(), "bound but not declared by mpi.h: {more:?}");
}

/// `mpi_abi.h` is the header of the standard's own ABI. Where an MPI has the one of MPI 5.0,
/// it shows that `standard.txt` is whole.
#[test]
fn the_standard_has_the_names_of_its_abi() {
    let mut headers = header::includes().into_iter().map(|folder| folder.join("mpi_abi.h"));
    let Some(text) = headers.find_map(|path| std::fs::read_to_string(path).ok()) else { return };
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut defines = |name, value| lines.any(|line| line == ["#define", name, value]);
    if !(defines("MPI_VERSION", "5") && defines("MPI_SUBVERSION", "0")) {
        return;
    }
    let names = standard::names();
    let unknown = header::declared("mpi_abi.h").unwrap().into_iter().filter(|name| {
        // Extensions, the structs behind handles, and fields of a status.
        let is_own = name.starts_with("PMPI")
            || name.starts_with("MPIX_")
            || name.ends_with("_t")
            || name.starts_with("MPI_ABI_")
            || ["MPI_H_ABI", "MPI_internal", "MPI_SOURCE", "MPI_TAG", "MPI_ERROR"]
                .contains(&name.as_str());
        !is_own && !names.contains_key(name.as_str())
    });
    let unknown: Vec<_> = unknown.collect();
    // A name for `MPI_Session_errhandler_function` that the standard does not have.
    assert_eq!(unknown, ["MPI_Session_errhandler_fn"]);
}

#[test]
#[cfg_attr(feature = "abi", ignore = "of mpi.h, and not of mpi_abi.h")]
fn the_page_is_true() {
    let header = Header::read();
    let (reasons, _) = unbound(&header);
    page::check(&header, &reasons);
}
