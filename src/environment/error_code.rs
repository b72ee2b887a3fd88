//! Turns the error code that an MPI function returned into a [`Result`]: nothing else does so.

use std::ffi::c_int;

use crate::base::error::{Error, Result};

/// Calls an MPI function, and turns what it returned into a `Result`; an error names the function.
/// Unsafe, as the call is.
macro_rules! checked {
    ($function:ident($($argument:expr),* $(,)?)) => {
        $crate::environment::error_code::check(
            stringify!($function),
            mpi_sys::$function($($argument),*),
        )
    };
}
pub(crate) use checked;

/// Turns what `call` returned into a `Result`.
#[inline]
pub(crate) fn check(call: &'static str, code: c_int) -> Result<()> {
    if code == mpi_sys::MPI_SUCCESS { Ok(()) } else { Err(failure(call, code)) }
}

#[cold]
fn failure(call: &'static str, code: c_int) -> Error {
    if !can_explain() {
        let message = format!("error code {code}, while MPI is not initialized");
        return Error::Mpi { call, class: "MPI_ERR_OTHER", message, detail: String::new() };
    }
    let mut class = code;
    // SAFETY: MPI_Error_class takes any code that an MPI function returned; `class` outlives it.
    unsafe { mpi_sys::MPI_Error_class(code, &mut class) };
    let name = class_name(class);
    let text = error_string(class);
    let detail = detail(&error_string(code), &text);
    // Open MPI puts the name of the class before the text.
    let text = text.strip_prefix(name).map_or(text.as_str(), |rest| rest.trim_start_matches(": "));
    let mut message = uncapitalized(text);
    if class == mpi_sys::MPI_ERR_TRUNCATE {
        message.push_str("; MPI4TCH_CHECK=collective tells what differs between the ranks");
    }
    Error::Mpi { call, class: name, message, detail }
}

/// What the library's text for an error code says beyond its text for the class of the code.
///
/// MPICH's text for a code is that for the class, followed by a line for each function that failed,
/// from the MPI function down to the cause: `MPIR_Get_contextid(491)...: Too many communicators`.
/// The detail is what these lines say after the function's name, without those lines that only say
/// that the function failed.
fn detail(text: &str, class: &str) -> String {
    let text = text.strip_prefix(class).unwrap_or(text);
    let text = text.strip_prefix(", error stack:").unwrap_or(text);
    let said = text.lines().map(|line| match line.split_once(": ") {
        Some((place, said)) if place.trim_end_matches('.').ends_with(')') => said.trim(),
        _ => line.trim(),
    });
    let is_place =
        |said: &str| said.ends_with(':') && said.trim_end_matches(['.', ':']).ends_with(')');
    let says_more = |said: &&str| !said.is_empty() && !said.ends_with(" failed") && !is_place(said);
    said.filter(says_more).map(uncapitalized).collect::<Vec<_>>().join("; ")
}

/// The text without the initial capital of MPICH's texts; a name in capitals stays as it is.
fn uncapitalized(text: &str) -> String {
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), second) if !second.is_some_and(char::is_uppercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// Whether MPI can be asked what an error code means. Before its initialization and after its
/// finalization it would abort the program.
fn can_explain() -> bool {
    let (mut initialized, mut finalized) = (0, 0);
    // SAFETY: both functions may be called at any time, and write one int.
    unsafe {
        mpi_sys::MPI_Initialized(&mut initialized);
        mpi_sys::MPI_Finalized(&mut finalized);
    }
    initialized != 0 && finalized == 0
}

fn error_string(code: c_int) -> String {
    let mut text = vec![0_u8; mpi_sys::MPI_MAX_ERROR_STRING as usize];
    let mut length = 0;
    // SAFETY: `text` has the MPI_MAX_ERROR_STRING bytes that MPI may write.
    unsafe { mpi_sys::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    text.truncate(usize::try_from(length).unwrap_or(0));
    String::from_utf8_lossy(&text).into_owned()
}

macro_rules! class_names {
    ($($name:ident)*) => {
        fn class_name(class: c_int) -> &'static str {
            match class {
                $(c if c == mpi_sys::$name => stringify!($name),)*
                _ => "MPI_ERR_UNKNOWN",
            }
        }
    };
}

class_names! {
    MPI_ERR_BUFFER MPI_ERR_COUNT MPI_ERR_TYPE MPI_ERR_TAG MPI_ERR_COMM MPI_ERR_RANK
    MPI_ERR_REQUEST MPI_ERR_ROOT MPI_ERR_GROUP MPI_ERR_OP MPI_ERR_TOPOLOGY MPI_ERR_DIMS
    MPI_ERR_ARG MPI_ERR_TRUNCATE MPI_ERR_OTHER MPI_ERR_INTERN MPI_ERR_IN_STATUS
    MPI_ERR_PENDING MPI_ERR_NO_MEM
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_what_the_library_says_beyond_the_class() {
        let class = "Other MPI error";
        let text = "Other MPI error, error stack:\n\
                    internal_Comm_dup(82)................: MPI_Comm_dup(comm=0x84000005, \
                    newcomm=0x7ffd2b) failed\n\
                    MPIR_Comm_dup_impl(599)..............: \n\
                    MPIR_Get_contextid_sparse_group(498).: Too many communicators (0/2048 free on \
                    this process; ignore_id=0)";
        let said = "too many communicators (0/2048 free on this process; ignore_id=0)";
        assert_eq!(detail(text, class), said);
        let text = "Other MPI error, error stack:\nMPI_Recv(200): MPI_Recv(count=1) failed\n\
                    MPIDI_recv(24)......:\nfirst(1): Out of memory: 8 bytes\nlast(2)..: Try again\n";
        assert_eq!(detail(text, class), "out of memory: 8 bytes; try again");
        for text in [class, "", "MPI_ERR_COMM: invalid communicator"] {
            assert_eq!(detail(text, text), "");
        }
        // Of a text in another format, all is kept.
        assert_eq!(detail("The job is out of ports", class), "the job is out of ports");
    }
}
