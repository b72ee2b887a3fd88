//! Error handlers that are written in Rust.
//!
//! The functions of error handlers are C-variadic: after the object and the error code,
//! an MPI library may pass arguments of its own. Stable Rust can call such a function, but
//! cannot define one. The functions of this module take one without the further arguments,
//! and return it as the type that `MPI_Comm_create_errhandler` and its kin take:
//!
//! ```
//! use mpi_sys::*;
//! use std::ffi::c_int;
//!
//! unsafe extern "C" fn report(_: *mut MPI_Comm, code: *mut c_int) {
//!     // SAFETY: MPI passes the address of the error code.
//!     eprintln!("MPI failed with code {}", unsafe { *code });
//! }
//!
//! fn handle_errors_of(comm: MPI_Comm) {
//!     let mut handler = MPI_ERRHANDLER_NULL;
//!     // SAFETY: MPI is initialized, and `report` is a function of the program.
//!     unsafe { MPI_Comm_create_errhandler(errhandler::comm(report), &mut handler) };
//!     // SAFETY: both handles are valid.
//!     unsafe { MPI_Comm_set_errhandler(comm, handler) };
//!     // SAFETY: the handler is kept as long as the communicator has it.
//!     unsafe { MPI_Errhandler_free(&mut handler) };
//! }
//! ```
//!
//! A handler must not unwind: Rust ends the program if one panics. It may return, and MPI
//! then returns the error code from the call that failed; MPICH 5.0.2 returns `MPI_SUCCESS`.
//!
//! # Why this is sound
//!
//! MPI calls the function by the calling convention for variadic functions, while Rust
//! compiles it by that for functions with two arguments. Where this module exists, the two
//! pass the two pointers alike and leave the rest to the caller:
//!
//! - **x86-64** (System V): named arguments are in `rdi` and `rsi` in both. A variadic call
//!   sets `al` besides, to the number of vector registers that it uses, and `al` belongs to
//!   the callee anyway. Further arguments are in registers that the callee may overwrite, or
//!   on the stack, which the caller clears.
//! - **aarch64** (AAPCS64): named arguments are in `x0` and `x1` in both. Further arguments
//!   are in registers or on the stack (on Apple's systems always on the stack), and the
//!   caller clears the stack.
//!
//! C itself leaves a call through a pointer of another type undefined. What decides is that
//! the caller is machine code of another library, of which the compiler of the handler sees
//! nothing. So do not build MPI into the program by optimization across languages at link
//! time, or with checks of indirect calls (`-fsanitize=cfi-icall`): there, write the function
//! in C. On other processors this module does not exist.

use std::ffi::c_int;

use crate::*;

/// A function that turns a handler without further arguments into one with them.
macro_rules! cast {
    ($(#[$attribute:meta])* $name:ident, $object:ident => $function:ident) => {
        $(#[$attribute])*
        pub fn $name(handler: unsafe extern "C" fn(*mut $object, *mut c_int)) -> $function {
            type Variadic = unsafe extern "C" fn(*mut $object, *mut c_int, ...);
            // SAFETY: both are pointers to functions. That the handler may be called by the
            // variadic convention is shown in the documentation of this module.
            Some(unsafe {
                std::mem::transmute::<unsafe extern "C" fn(*mut $object, *mut c_int), Variadic>(
                    handler,
                )
            })
        }
    };
}

cast! {
    /// The argument of `MPI_Comm_create_errhandler` for this handler.
    comm, MPI_Comm => MPI_Comm_errhandler_function
}

cast! {
    /// The argument of `MPI_File_create_errhandler` for this handler.
    file, MPI_File => MPI_File_errhandler_function
}

cast! {
    /// The argument of `MPI_Win_create_errhandler` for this handler.
    win, MPI_Win => MPI_Win_errhandler_function
}

#[cfg(mpi_sessions)]
cast! {
    /// The argument of `MPI_Session_create_errhandler` for this handler.
    session, MPI_Session => MPI_Session_errhandler_function
}
