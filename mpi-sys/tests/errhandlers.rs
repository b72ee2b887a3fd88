//! Error handlers that are written in Rust.

mod world;

use std::ffi::{c_int, c_void};
use std::process::ExitCode;
use std::ptr;
use std::sync::Mutex;

use mpi_sys::*;
use world::World;

fn main() -> ExitCode {
    let tests = harness::tests![of_a_communicator, of_a_file, of_a_window];
    #[cfg(mpi_sessions)]
    let tests = tests.into_iter().chain(harness::tests![of_a_session]).collect();
    harness::run(world::start, tests)
}

/// The objects and the classes of the errors that handlers have seen.
static SEEN: Mutex<Vec<(Object, c_int)>> = Mutex::new(Vec::new());

#[derive(Clone, Copy, Debug, PartialEq)]
enum Object {
    Comm(MPI_Comm),
    File(MPI_File),
    Win(MPI_Win),
    #[cfg(mpi_sessions)]
    Session(MPI_Session),
}

unsafe extern "C" fn handle_comm(comm: *mut MPI_Comm, code: *mut c_int) {
    // SAFETY: MPI passes the addresses of a handle and of an error code.
    let (comm, code) = unsafe { (*comm, *code) };
    note(Object::Comm(comm), code);
}

unsafe extern "C" fn handle_file(file: *mut MPI_File, code: *mut c_int) {
    // SAFETY: as above.
    let (file, code) = unsafe { (*file, *code) };
    note(Object::File(file), code);
}

unsafe extern "C" fn handle_win(win: *mut MPI_Win, code: *mut c_int) {
    // SAFETY: as above.
    let (win, code) = unsafe { (*win, *code) };
    note(Object::Win(win), code);
}

#[cfg(mpi_sessions)]
unsafe extern "C" fn handle_session(session: *mut MPI_Session, code: *mut c_int) {
    // SAFETY: as above.
    let (session, code) = unsafe { (*session, *code) };
    note(Object::Session(session), code);
}

fn note(object: Object, code: c_int) {
    let mut class = MPI_SUCCESS;
    // SAFETY: `class` is a place for the result.
    unsafe { MPI_Error_class(code, &mut class) };
    SEEN.lock().unwrap().push((object, class));
}

/// What the handlers have seen since the last call.
fn seen() -> Vec<(Object, c_int)> {
    std::mem::take(&mut SEEN.lock().unwrap())
}

fn of_a_communicator(_: &World) {
    let (mut comm, mut handler) = (MPI_COMM_NULL, MPI_ERRHANDLER_NULL);
    // SAFETY: `comm` is a place for the result.
    ok(unsafe { MPI_Comm_dup(MPI_COMM_WORLD, &mut comm) });
    // SAFETY: `handle_comm` is a function of the program.
    ok(unsafe { MPI_Comm_create_errhandler(errhandler::comm(handle_comm), &mut handler) });
    // SAFETY: both handles are valid.
    ok(unsafe { MPI_Comm_set_errhandler(comm, handler) });
    // SAFETY: no element is read or written, and the root is checked.
    unsafe { MPI_Bcast(ptr::null_mut(), 0, MPI_INT, 1000, comm) };
    assert_eq!(seen(), [(Object::Comm(comm), MPI_ERR_ROOT)]);
    // SAFETY: the communicator is valid, and the code is one of MPI.
    unsafe { MPI_Comm_call_errhandler(comm, MPI_ERR_OTHER) };
    assert_eq!(seen(), [(Object::Comm(comm), MPI_ERR_OTHER)]);
    // SAFETY: the handler is kept as long as the communicator has it.
    ok(unsafe { MPI_Errhandler_free(&mut handler) });
    // SAFETY: no operation is under way.
    ok(unsafe { MPI_Comm_free(&mut comm) });
}

/// Files that cannot be opened have the handler of `MPI_FILE_NULL`.
fn of_a_file(_: &World) {
    let (mut file, mut handler) = (MPI_FILE_NULL, MPI_ERRHANDLER_NULL);
    // SAFETY: `handle_file` is a function of the program.
    ok(unsafe { MPI_File_create_errhandler(errhandler::file(handle_file), &mut handler) });
    // SAFETY: both handles are valid.
    ok(unsafe { MPI_File_set_errhandler(MPI_FILE_NULL, handler) });
    let path = c"/no folder/no file";
    // SAFETY: `path` is a string of C.
    unsafe {
        MPI_File_open(MPI_COMM_SELF, path.as_ptr(), MPI_MODE_RDONLY, MPI_INFO_NULL, &mut file)
    };
    assert_eq!(seen(), [(Object::File(MPI_FILE_NULL), MPI_ERR_NO_SUCH_FILE)]);
    // SAFETY: both handles are predefined.
    ok(unsafe { MPI_File_set_errhandler(MPI_FILE_NULL, MPI_ERRORS_RETURN) });
    // SAFETY: the handler is not in use any more.
    ok(unsafe { MPI_Errhandler_free(&mut handler) });
}

fn of_a_window(_: &World) {
    let (mut win, mut handler) = (MPI_WIN_NULL, MPI_ERRHANDLER_NULL);
    let mut memory: *mut c_void = ptr::null_mut();
    // SAFETY: `memory` and `win` are places for the results.
    ok(unsafe {
        let memory = (&raw mut memory).cast();
        MPI_Win_allocate(8, 1, MPI_INFO_NULL, MPI_COMM_WORLD, memory, &mut win)
    });
    // SAFETY: `handle_win` is a function of the program.
    ok(unsafe { MPI_Win_create_errhandler(errhandler::win(handle_win), &mut handler) });
    // SAFETY: both handles are valid.
    ok(unsafe { MPI_Win_set_errhandler(win, handler) });
    // SAFETY: the window is valid, and the code is one of MPI.
    unsafe { MPI_Win_call_errhandler(win, MPI_ERR_WIN) };
    assert_eq!(seen(), [(Object::Win(win), MPI_ERR_WIN)]);
    // SAFETY: the handler is kept as long as the window has it.
    ok(unsafe { MPI_Errhandler_free(&mut handler) });
    // SAFETY: no access is under way.
    ok(unsafe { MPI_Win_free(&mut win) });
}

#[cfg(mpi_sessions)]
fn of_a_session(_: &World) {
    let (mut session, mut handler) = (MPI_SESSION_NULL, MPI_ERRHANDLER_NULL);
    // SAFETY: `session` is a place for the result.
    ok(unsafe { MPI_Session_init(MPI_INFO_NULL, MPI_ERRORS_RETURN, &mut session) });
    // SAFETY: `handle_session` is a function of the program.
    ok(unsafe { MPI_Session_create_errhandler(errhandler::session(handle_session), &mut handler) });
    // SAFETY: both handles are valid.
    ok(unsafe { MPI_Session_set_errhandler(session, handler) });
    // SAFETY: the session is valid, and the code is one of MPI.
    unsafe { MPI_Session_call_errhandler(session, MPI_ERR_OTHER) };
    assert_eq!(seen(), [(Object::Session(session), MPI_ERR_OTHER)]);
    // SAFETY: the handler is kept as long as the session has it.
    ok(unsafe { MPI_Errhandler_free(&mut handler) });
    // SAFETY: nothing of the session is in use.
    ok(unsafe { MPI_Session_finalize(&mut session) });
}

#[track_caller]
fn ok(code: c_int) {
    assert_eq!(code, MPI_SUCCESS);
}
