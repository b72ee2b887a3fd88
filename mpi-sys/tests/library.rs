//! Tests that the library that is loaded is the one that was compiled for, and
//! that the constants are those of this library.

mod world;

use std::collections::HashSet;
use std::ffi::{CStr, c_char, c_int};
use std::process::ExitCode;
use std::ptr;

use mpi_sys::*;
use world::World;

fn main() -> ExitCode {
    let tests = harness::tests![
        loaded_library,
        world_is_complete,
        standard,
        handles_are_distinct,
        sizes,
        fortran,
        statuses_of_fortran,
        attribute_functions,
        threads
    ];
    harness::run(world::start, tests)
}

fn loaded_library(_: &World) {
    let version = text::<MAX_VERSION>(|buffer, length| {
        // SAFETY: the buffer has the length that the standard asks for.
        unsafe { MPI_Get_library_version(buffer, length) }
    });
    assert!(is_compiled_for(&version), "{version}");
    match abi_versions() {
        Some([compiled, loaded]) => assert_eq!(compiled.0, loaded.0),
        None => assert!(version.contains(LIBRARY_VERSION), "{LIBRARY_VERSION} is not in {version}"),
    }
    assert_eq!(loaded_vendor(), Vendor::of_library(&version));
    assert!(has_standard_constants());
}

const MAX_VERSION: usize = MPI_MAX_LIBRARY_VERSION_STRING as usize;

/// All ranks are in one world; the harness checks their number.
fn world_is_complete(world: &World) {
    assert!((0..world.size).contains(&world.rank));
    let (mut sum, expected) = (world.rank, (0..world.size).sum());
    // SAFETY: `sum` is one integer, read and written in place.
    let code = unsafe {
        let buffer = (&raw mut sum).cast();
        MPI_Allreduce(MPI_IN_PLACE, buffer, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD)
    };
    assert_eq!(code, MPI_SUCCESS);
    assert_eq!(sum, expected);
}

fn standard(_: &World) {
    let (mut version, mut subversion) = (0, 0);
    // SAFETY: both are places for the result.
    let code = unsafe { MPI_Get_version(&mut version, &mut subversion) };
    assert_eq!(code, MPI_SUCCESS);
    // A library may have the ABI of a later standard than the one that it implements.
    assert!((version, subversion) == STANDARD || VENDOR == Vendor::StandardAbi);
    assert!(STANDARD >= (3, 1));
    assert_eq!(cfg!(mpi_4), STANDARD >= (4, 0));
}

fn handles_are_distinct(_: &World) {
    let datatypes = [
        MPI_DATATYPE_NULL,
        MPI_BYTE,
        MPI_C_BOOL,
        MPI_INT8_T,
        MPI_UINT8_T,
        MPI_INT16_T,
        MPI_INT32_T,
        MPI_INT64_T,
        MPI_FLOAT,
        MPI_DOUBLE,
        MPI_C_FLOAT_COMPLEX,
        MPI_C_DOUBLE_COMPLEX,
        MPI_2INT,
        MPI_FLOAT_INT,
        MPI_DOUBLE_INT,
    ];
    assert_eq!(HashSet::from(datatypes).len(), datatypes.len());
    let ops = [
        MPI_OP_NULL,
        MPI_SUM,
        MPI_PROD,
        MPI_MAX,
        MPI_MIN,
        MPI_LAND,
        MPI_LOR,
        MPI_LXOR,
        MPI_BAND,
        MPI_BOR,
        MPI_BXOR,
        MPI_MAXLOC,
        MPI_MINLOC,
        MPI_REPLACE,
        MPI_NO_OP,
    ];
    assert_eq!(HashSet::from(ops).len(), ops.len());
    let comms = [MPI_COMM_NULL, MPI_COMM_WORLD, MPI_COMM_SELF];
    assert_eq!(HashSet::from(comms).len(), comms.len());
    assert_ne!(MPI_ERRORS_RETURN, MPI_ERRORS_ARE_FATAL);
    assert_ne!(MPI_GROUP_NULL, MPI_GROUP_EMPTY);
    assert_ne!(MPI_MESSAGE_NULL, MPI_MESSAGE_NO_PROC);
    assert_ne!(MPI_INFO_NULL, MPI_INFO_ENV);
    assert_ne!(MPI_IN_PLACE, MPI_BOTTOM);
    assert_ne!(MPI_UNWEIGHTED, MPI_WEIGHTS_EMPTY);
    let wildcards = [MPI_ANY_SOURCE, MPI_PROC_NULL, MPI_ROOT];
    assert_eq!(HashSet::from(wildcards).len(), wildcards.len());
    assert!(wildcards.iter().all(|wildcard| *wildcard < 0));
}

fn sizes(_: &World) {
    let datatypes = [
        (MPI_BYTE, 1),
        (MPI_C_BOOL, 1),
        (MPI_INT16_T, 2),
        (MPI_INT32_T, 4),
        (MPI_INT64_T, 8),
        (MPI_FLOAT, 4),
        (MPI_DOUBLE, 8),
        (MPI_C_FLOAT_COMPLEX, 8),
        (MPI_C_DOUBLE_COMPLEX, 16),
        (MPI_AINT, size_of::<MPI_Aint>()),
        (MPI_COUNT, size_of::<MPI_Count>()),
        (MPI_OFFSET, size_of::<MPI_Offset>()),
        (MPI_2INT, 8),
        (MPI_FLOAT_INT, 8),
        (MPI_DOUBLE_INT, 12),
    ];
    for (datatype, expected) in datatypes {
        let mut size = -1;
        // SAFETY: the datatype is predefined, and `size` a place for the result.
        assert_eq!(unsafe { MPI_Type_size(datatype, &mut size) }, MPI_SUCCESS);
        assert_eq!(usize::try_from(size), Ok(expected), "{datatype:?}");
    }
}

fn fortran(_: &World) {
    // SAFETY: the handle is predefined.
    let number = unsafe { MPI_Comm_c2f(MPI_COMM_WORLD) };
    // SAFETY: `number` came from a handle.
    assert_eq!(unsafe { MPI_Comm_f2c(number) }, MPI_COMM_WORLD);
    // SAFETY: as above. The standard's ABI has no such functions.
    #[cfg(not(feature = "abi"))]
    assert_eq!(unsafe { PMPI_Comm_f2c(number) }, MPI_COMM_WORLD);
    // SAFETY: the handle is predefined.
    let number = unsafe { MPI_Type_c2f(MPI_DOUBLE) };
    // SAFETY: `number` came from a handle.
    assert_eq!(unsafe { MPI_Type_f2c(number) }, MPI_DOUBLE);
}

/// A status of Fortran has no more integers than this.
#[cfg(not(feature = "abi"))]
const FORTRAN_STATUS: usize = 64;

/// The standard's ABI has no such functions.
#[cfg(feature = "abi")]
fn statuses_of_fortran(_: &World) {}

#[cfg(not(feature = "abi"))]
fn statuses_of_fortran(_: &World) {
    let mut status = MPI_Status { MPI_SOURCE: 3, MPI_TAG: 5, ..MPI_Status::default() };
    let mut integers: [MPI_Fint; FORTRAN_STATUS] = [0; FORTRAN_STATUS];
    // SAFETY: there is room for a status of Fortran.
    let code = unsafe { MPI_Status_c2f(&status, integers.as_mut_ptr()) };
    assert_eq!(code, MPI_SUCCESS);
    status = MPI_Status::default();
    // SAFETY: `integers` are a status of Fortran, and `status` is a place for the result.
    let code = unsafe { MPI_Status_f2c(integers.as_ptr(), &mut status) };
    assert_eq!(code, MPI_SUCCESS);
    assert_eq!((status.MPI_SOURCE, status.MPI_TAG), (3, 5));
}

/// A communicator's duplicate has the attributes that `MPI_COMM_DUP_FN` copies, but not those
/// that `MPI_COMM_NULL_COPY_FN` leaves. The older functions do the same.
fn attribute_functions(_: &World) {
    let make = |copy| {
        let mut key = MPI_KEYVAL_INVALID;
        let delete = MPI_COMM_NULL_DELETE_FN;
        // SAFETY: the functions are MPI's own, and `key` is a place for the result.
        let code = unsafe { MPI_Comm_create_keyval(copy, delete, &mut key, ptr::null_mut()) };
        assert_eq!(code, MPI_SUCCESS);
        key
    };
    let make_old = |copy| {
        let mut key = MPI_KEYVAL_INVALID;
        // SAFETY: as above.
        let code =
            unsafe { MPI_Keyval_create(copy, MPI_NULL_DELETE_FN, &mut key, ptr::null_mut()) };
        assert_eq!(code, MPI_SUCCESS);
        key
    };
    let keys = [
        (make(MPI_COMM_DUP_FN), true),
        (make(MPI_COMM_NULL_COPY_FN), false),
        (make_old(MPI_DUP_FN), true),
        (make_old(MPI_NULL_COPY_FN), false),
    ];
    let (mut original, mut copy) = (MPI_COMM_NULL, MPI_COMM_NULL);
    // SAFETY: all ranks duplicate the world, and `original` is a place for the result.
    assert_eq!(unsafe { MPI_Comm_dup(MPI_COMM_WORLD, &mut original) }, MPI_SUCCESS);
    let mut value = 0_i32;
    for (key, _) in keys {
        let value = (&raw mut value).cast();
        // SAFETY: MPI keeps the address, and never reads from it.
        assert_eq!(unsafe { MPI_Comm_set_attr(original, key, value) }, MPI_SUCCESS);
    }
    // SAFETY: all ranks duplicate the communicator, and `copy` is a place for the result.
    assert_eq!(unsafe { MPI_Comm_dup(original, &mut copy) }, MPI_SUCCESS);
    for (mut key, is_copied) in keys {
        let (mut attribute, mut found) = (ptr::null_mut::<i32>(), -1);
        let place = (&raw mut attribute).cast();
        // SAFETY: `place` and `found` are places for the results.
        let code = unsafe { MPI_Comm_get_attr(copy, key, place, &mut found) };
        assert_eq!((code, found != 0), (MPI_SUCCESS, is_copied));
        assert!(!is_copied || ptr::eq(attribute, &raw const value));
        // SAFETY: the key is valid.
        assert_eq!(unsafe { MPI_Comm_free_keyval(&mut key) }, MPI_SUCCESS);
    }
    for mut comm in [original, copy] {
        // SAFETY: the communicator is valid, and nothing is under way.
        assert_eq!(unsafe { MPI_Comm_free(&mut comm) }, MPI_SUCCESS);
    }
}

/// Handles may be sent to and shared with other threads.
fn threads(_: &World) {
    fn assert_thread_safe<T: Send + Sync>() {}
    assert_thread_safe::<MPI_Comm>();
    assert_thread_safe::<MPI_Request>();
    let ordered =
        [MPI_THREAD_SINGLE, MPI_THREAD_FUNNELED, MPI_THREAD_SERIALIZED, MPI_THREAD_MULTIPLE];
    assert!(ordered.is_sorted());
}

/// The text that `get` writes into a buffer of N bytes.
fn text<const N: usize>(get: impl FnOnce(*mut c_char, *mut c_int) -> c_int) -> String {
    let mut buffer = vec![0_u8; N + 1];
    let mut length = 0;
    assert_eq!(get(buffer.as_mut_ptr().cast(), &mut length), MPI_SUCCESS);
    let text = CStr::from_bytes_until_nul(&buffer).expect("the last byte is zero");
    text.to_str().expect("ASCII").to_owned()
}
