//! A file that all ranks write and read at the same time: first at offsets of their own, then
//! from begin to end, as one reads a pipe or a tape.
//!
//! ```sh
//! cargo build --example file && mpiexec -n 4 target/debug/examples/file /scratch/numbers
//! ```

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use mpi_sys::*;

fn main() {
    let path = std::env::args_os().nth(1).expect("the first argument is the path of the file");
    // SAFETY: null stands for the arguments of the program.
    assert_eq!(unsafe { MPI_Init(ptr::null_mut(), ptr::null_mut()) }, MPI_SUCCESS);
    run(path.as_ref());
    // SAFETY: no communication is under way.
    assert_eq!(unsafe { MPI_Finalize() }, MPI_SUCCESS);
}

/// The numbers that each rank writes.
const COUNT: usize = 3;

/// Writes and reads the file on the ranks of `MPI_COMM_WORLD`, and deletes it.
pub fn run(path: &Path) {
    let mut rank = -1;
    // SAFETY: `rank` is a place for the result.
    check(unsafe { MPI_Comm_rank(MPI_COMM_WORLD, &mut rank) });
    let numbers = [0, 1, 2].map(|i| i64::from(rank) * 10 + i);
    let count = i32::try_from(COUNT).expect("a few numbers");

    // Each rank sees the part of the file that begins at its own displacement.
    let file = open(path, MPI_MODE_CREATE | MPI_MODE_WRONLY);
    let bytes = MPI_Offset::try_from(size_of_val(&numbers)).expect("a few bytes");
    set_view(file, MPI_Offset::from(rank) * bytes);
    let buffer = numbers.as_ptr().cast();
    // SAFETY: `numbers` has `count` elements.
    check(unsafe { MPI_File_write_all(file, buffer, count, MPI_INT64_T, MPI_STATUS_IGNORE) });
    close(file);

    // In sequential mode there are no offsets: a view begins where the shared file pointer is,
    // which `MPI_DISPLACEMENT_CURRENT` says. The ranks read one after another.
    let mode = MPI_MODE_RDONLY | MPI_MODE_SEQUENTIAL | MPI_MODE_DELETE_ON_CLOSE;
    let file = open(path, mode);
    set_view(file, MPI_DISPLACEMENT_CURRENT);
    let mut read = [0_i64; COUNT];
    let mut status = MPI_Status::default();
    let buffer = read.as_mut_ptr().cast();
    // SAFETY: `read` has room for `count` elements.
    check(unsafe { MPI_File_read_ordered(file, buffer, count, MPI_INT64_T, &mut status) });
    let mut received = -1;
    // SAFETY: `status` is of the read; `received` is a place for the result.
    check(unsafe { MPI_Get_count(&status, MPI_INT64_T, &mut received) });
    close(file);

    assert_eq!((received, read), (count, numbers));
    println!("rank {rank} has read {read:?}");
}

/// Opens the file on all ranks.
fn open(path: &Path, mode: i32) -> MPI_File {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no zero byte");
    let mut file = MPI_FILE_NULL;
    // SAFETY: `path` is a string of C; `file` is a place for the result.
    check(unsafe { MPI_File_open(MPI_COMM_WORLD, path.as_ptr(), mode, MPI_INFO_NULL, &mut file) });
    file
}

/// Lets this rank see the file from a displacement on, as 64-bit integers.
fn set_view(file: MPI_File, displacement: MPI_Offset) {
    let kind = MPI_INT64_T;
    let representation = c"native".as_ptr();
    // SAFETY: `file` is open, and `representation` is a string of C.
    check(unsafe {
        MPI_File_set_view(file, displacement, kind, kind, representation, MPI_INFO_NULL)
    });
}

fn close(mut file: MPI_File) {
    // SAFETY: `file` is open, and no operation on it is under way.
    check(unsafe { MPI_File_close(&mut file) });
}

/// Files have the error handler `MPI_ERRORS_RETURN`, unless another was set: unlike those of
/// communicators, their errors come back as codes.
fn check(code: i32) {
    if code == MPI_SUCCESS {
        return;
    }
    let mut text = [0_u8; MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the room that the standard asks for.
    unsafe { MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    panic!("{}", String::from_utf8_lossy(text));
}
