//! The C compiler's own headers.

use std::path::Path;
use std::process::Command;

/// The folder of the compiler's own headers, such as `stddef.h`, which libclang
/// lacks if it is packaged without clang.
pub fn headers() -> Option<String> {
    let compiler = cc::Build::new().cargo_metadata(false).get_compiler();
    let output = Command::new(compiler.path()).arg("-print-file-name=include").output().ok()?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && Path::new(&folder).is_dir()).then_some(folder)
}
