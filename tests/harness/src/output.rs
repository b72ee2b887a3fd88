//! What the ranks print: each into a file of its own, so that the launcher
//! neither mixes nor delays it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The file for the output of the rank that is the process `pid`.
pub fn file(folder: &Path, pid: impl std::fmt::Display) -> PathBuf {
    folder.join(format!("{pid}.txt"))
}

/// This process's standard output and error, in a file.
pub struct Redirected(File);

impl Redirected {
    /// Sends both to the file at `path` from now on.
    pub fn to(path: &Path) -> io::Result<Redirected> {
        let file = File::options().create(true).append(true).open(path)?;
        for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
            // SAFETY: both are open; that printing writes elsewhere is wanted.
            if unsafe { libc::dup2(file.as_raw_fd(), stream) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Redirected(file))
    }

    /// Forgets what was printed so far.
    pub fn clear(&self) -> io::Result<()> {
        self.0.set_len(0)
    }
}

/// The last part of what a rank has printed, as much as one wants to read.
pub fn tail(path: &Path) -> String {
    const LIMIT: usize = 20_000;
    let bytes = fs::read(path).unwrap_or_default();
    let skipped = bytes.len().saturating_sub(LIMIT);
    let text = String::from_utf8_lossy(&bytes[skipped..]);
    match skipped {
        0 => text.trim_end().to_owned(),
        _ => format!("({skipped} bytes left out)\n{}", text.trim_end()),
    }
}

/// What the launcher itself prints, or has passed on.
#[derive(Clone, Default)]
pub struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    /// Keeps what comes from `pipe`, on a thread that ends with it, or copies
    /// it to the standard error at once if `echo` is set.
    pub fn from(&self, mut pipe: impl Read + Send + 'static, echo: bool) {
        let collected = self.clone();
        thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut block) {
                let text = &block[..count];
                if echo {
                    // A closed standard error must not stop the pipe.
                    let _ = io::stderr().write_all(text);
                } else {
                    collected.lock().extend_from_slice(text);
                }
            }
        });
    }

    /// Hands over the text and starts anew.
    pub fn take(&self) -> String {
        let text = mem::take(&mut *self.lock());
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
