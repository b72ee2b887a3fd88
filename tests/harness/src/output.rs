//! What a job prints.

use std::io::{self, Read, Write};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// The text that a job has printed and nobody has asked for yet.
#[derive(Clone, Default)]
pub struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    /// Keeps what comes from `pipe`, on a thread that ends with it, and copies
    /// it to the standard error at once if `echo` is set.
    pub fn collect(&self, mut pipe: impl Read + Send + 'static, echo: bool) {
        let output = self.clone();
        thread::spawn(move || {
            let mut block = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut block) {
                let text = &block[..count];
                if echo {
                    // A closed standard error must not stop the pipe.
                    let _ = io::stderr().write_all(text);
                } else {
                    output.lock().extend_from_slice(text);
                }
            }
        });
    }

    /// Hands over the text and starts anew.
    pub fn take(&self) -> String {
        let text = mem::take(&mut *self.lock());
        String::from_utf8_lossy(&text).into_owned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
