//! `MPI4TCH_TRACE`: the folder of the timeline.

use std::ffi::{OsStr, OsString, c_int};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use mpi_sys::MPI_Comm;
use parking_lot::Mutex;

use super::event::Line;
use super::merge::RESULT;
use super::{Timeline, clock, file_name, nanoseconds};
use crate::base::error::{Error, Result};
use crate::base::rank::Rank;
use crate::environment::error_code::checked;
use crate::environment::return_errors;

/// Reads `MPI4TCH_TRACE`.
pub(in crate::environment) fn folder_from_environment() -> Result<Option<PathBuf>> {
    match std::env::var_os("MPI4TCH_TRACE") {
        Some(value) if value.is_empty() => Err(unusable(&value)),
        value => Ok(value.map(PathBuf::from)),
    }
}

fn unusable(value: &OsStr) -> Error {
    let value = value.to_string_lossy().into_owned();
    let needed = "the path of a folder, there or to be made, in which files can be written";
    Error::Setting { name: "MPI4TCH_TRACE", value, needed }
}

/// Opens the timeline. `own` is the folder that this rank's environment names; where it names none,
/// that of the rank `teller` is taken. Collective over `MPI_COMM_WORLD`, with permission to call MPI.
/// If a rank cannot write its file, it gets an error, and the others its number.
pub(in crate::environment) fn open(
    own: Option<PathBuf>,
    teller: Rank,
    (rank, size): (Rank, Rank),
) -> Result<std::result::Result<Arc<Timeline>, Rank>> {
    let told = tell(own.as_ref().map_or(OsStr::new(""), |own| own.as_os_str()), teller, rank)?;
    let folder = own.unwrap_or_else(|| PathBuf::from(told));
    let start = Instant::now();
    let file = begin(&folder, (rank, size)).map_err(|_| unusable(folder.as_os_str()));
    let mut failed: c_int = if file.is_ok() { -1 } else { rank };
    // SAFETY: an integer on every rank, combined in its place.
    unsafe {
        checked!(MPI_Allreduce(
            mpi_sys::MPI_IN_PLACE,
            std::ptr::from_mut(&mut failed).cast(),
            1,
            mpi_sys::MPI_INT,
            mpi_sys::MPI_MAX,
            mpi_sys::MPI_COMM_WORLD,
        ))
    }?;
    let file = file?;
    if failed >= 0 {
        // Nothing has been written to it.
        let _ = fs::remove_file(folder.join(file_name(rank)));
        return Ok(Err(failed));
    }
    let context = duplicate_of_world()?;
    let first = clock::compare(context, (rank, size), || nanoseconds(start.elapsed()))?;
    let (events, file, is_closed) = (Mutex::default(), Mutex::new(file), AtomicBool::new(false));
    let timeline =
        Arc::new(Timeline { start, rank, size, folder, context, first, events, file, is_closed });
    timeline.start_writing();
    Ok(Ok(timeline))
}

/// Makes the folder and the rank's file, whose first line names the rank. Rank 0 removes what an
/// earlier run has left.
fn begin(folder: &Path, (rank, size): (Rank, Rank)) -> std::io::Result<File> {
    fs::create_dir_all(folder)?;
    let mut file = File::create(folder.join(file_name(rank)))?;
    let mut name = Line::new(("process_name".to_owned(), ""), 'M', (rank, 0), 0.0);
    name.args.insert("name".to_owned(), format!("rank {rank} of {size}").into());
    let mut place = Line::new(("process_sort_index".to_owned(), ""), 'M', (rank, 0), 0.0);
    place.args.insert("sort_index".to_owned(), rank.into());
    // The end of the list may be missing, so that the file can be read if the program crashes.
    write!(file, "[\n{},\n{},\n", name.text(), place.text())?;
    if rank == 0 {
        match fs::remove_file(folder.join(RESULT)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
        (size..)
            .take_while(|&rank| fs::remove_file(folder.join(file_name(rank))).is_ok())
            .for_each(drop);
    }
    Ok(file)
}

/// The text of the rank `teller`, on all ranks.
fn tell(own: &OsStr, teller: Rank, rank: Rank) -> Result<OsString> {
    let mut bytes = if rank == teller { own.as_bytes().to_vec() } else { Vec::new() };
    // Paths are far shorter than an int counts.
    let mut count = c_int::try_from(bytes.len()).unwrap_or(0);
    let world = mpi_sys::MPI_COMM_WORLD;
    let place = std::ptr::from_mut(&mut count).cast();
    // SAFETY: an integer on every rank.
    unsafe { checked!(MPI_Bcast(place, 1, mpi_sys::MPI_INT, teller, world)) }?;
    bytes.resize(count.unsigned_abs() as usize, 0);
    // SAFETY: as many bytes as the count says, on every rank.
    unsafe {
        checked!(MPI_Bcast(bytes.as_mut_ptr().cast(), count, mpi_sys::MPI_BYTE, teller, world))
    }?;
    Ok(OsString::from_vec(bytes))
}

fn duplicate_of_world() -> Result<MPI_Comm> {
    let mut duplicate = mpi_sys::MPI_COMM_NULL;
    // SAFETY: MPI's own communicator; `duplicate` outlives the call.
    unsafe { checked!(MPI_Comm_dup(mpi_sys::MPI_COMM_WORLD, &mut duplicate)) }?;
    return_errors(duplicate)?;
    Ok(duplicate)
}
