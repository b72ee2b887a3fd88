//! What the C compiler knows.

use std::path::Path;
use std::process::Command;

/// The folder of the compiler's own headers, with `stddef.h`: libclang alone,
/// as packaged without clang, has none.
pub fn headers() -> Option<String> {
    let compiler = cc::Build::new().cargo_metadata(false).get_compiler();
    let output = Command::new(compiler.path()).arg("-print-file-name=include").output().ok()?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && Path::new(&folder).is_dir()).then_some(folder)
}
