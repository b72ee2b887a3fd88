//! Whether `LIBTORCH` is a libtorch that tch can use.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// Versions of libtorch, each with the version of tch that needs it.
const VERSIONS: [(&str, &str); 2] = [("2.11", "0.24"), ("2.13", "0.26")];

/// The headers that may state the version of libtorch: before 2.9, the second.
const HEADERS: [&str; 2] =
    ["include/torch/headeronly/version.h", "include/torch/csrc/api/include/torch/version.h"];

/// Checks the folder of `LIBTORCH`, if torch-sys is going to use it.
pub fn check(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), String> {
    // torch-sys then asks Python for the folder, and checks the version itself.
    if variable("LIBTORCH_USE_PYTORCH").is_some() {
        return Ok(());
    }
    let Some(libtorch) = variable("LIBTORCH").map(PathBuf::from) else { return Ok(()) };
    let wrong = |why: &str| {
        let needed = VERSIONS.map(|(libtorch, tch)| format!("{libtorch} for tch {tch}")).join(", ");
        Err(format!(
            "LIBTORCH is {libtorch:?}, {why}; it may be the absolute path of a folder with \
             include/ and lib/ of libtorch ({needed})"
        ))
    };
    if !libtorch.is_absolute() {
        return wrong("which is not an absolute path");
    }
    if !libtorch.is_dir() {
        return wrong("which is no folder");
    }
    let folder = |name: &str| variable(name).map_or(libtorch.clone(), PathBuf::from);
    let (include, lib) = (folder("LIBTORCH_INCLUDE"), folder("LIBTORCH_LIB").join("lib"));
    let Some(version) = HEADERS.iter().find_map(|header| stated_version(&include.join(header)))
    else {
        return wrong(&format!("but {:?} does not state its version", include.join(HEADERS[0])));
    };
    if !["so", "dylib", "a"].iter().any(|end| lib.join(format!("libtorch_cpu.{end}")).exists()) {
        return wrong(&format!("but there is no libtorch_cpu.so in {lib:?}"));
    }
    if variable("LIBTORCH_BYPASS_VERSION_CHECK").is_none()
        && !VERSIONS.iter().any(|(needed, _)| *needed == version)
    {
        return wrong(&format!(
            "which is libtorch {version}, and LIBTORCH_BYPASS_VERSION_CHECK is not set"
        ));
    }
    Ok(())
}

/// The version in the header's macros, as in `2.11`.
fn stated_version(header: &Path) -> Option<String> {
    let text = fs::read_to_string(header).ok()?;
    let number = |part: &str| {
        let macro_of = format!("#define TORCH_VERSION_{part} ");
        text.lines().find_map(|line| line.strip_prefix(&macro_of)).map(str::trim)
    };
    Some(format!("{}.{}", number("MAJOR")?, number("MINOR")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a folder with the header and the library of this version.
    fn install(name: &str, minor: u32) -> PathBuf {
        let folder = format!("mpi4tch-libtorch-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        let header = folder.join(HEADERS[0]);
        fs::create_dir_all(header.parent().unwrap()).unwrap();
        fs::create_dir_all(folder.join("lib")).unwrap();
        let text = format!(
            "#pragma once\n#define TORCH_VERSION_MAJOR 2\n\n#define TORCH_VERSION_MINOR {minor}\n"
        );
        fs::write(header, text).unwrap();
        fs::write(folder.join("lib/libtorch_cpu.so"), "").unwrap();
        folder
    }

    /// What the error says is wrong with this folder, with the `others` variables set, too.
    fn told(libtorch: &Path, others: &[&str]) -> Option<String> {
        let variable = |name: &str| match name {
            "LIBTORCH" => Some(libtorch.into()),
            _ => others.contains(&name).then(|| "1".into()),
        };
        let needed = "; it may be the absolute path of a folder with include/ and lib/ of libtorch \
                      (2.11 for tch 0.24, 2.13 for tch 0.26)";
        let told = check(variable).err()?;
        let told = told.strip_prefix(&format!("LIBTORCH is {libtorch:?}, ")).unwrap();
        Some(told.strip_suffix(needed).unwrap().to_owned())
    }

    #[test]
    fn a_libtorch_that_tch_can_use_is_taken() {
        for minor in [11, 13] {
            let libtorch = install(&format!("right-{minor}"), minor);
            assert_eq!(told(&libtorch, &[]), None);
            fs::remove_dir_all(libtorch).unwrap();
        }
        assert_eq!(check(|_| None), Ok(()));
    }

    #[test]
    fn another_is_told() {
        let libtorch = install("wrong", 4);
        let other = "which is libtorch 2.4, and LIBTORCH_BYPASS_VERSION_CHECK is not set";
        assert_eq!(told(&libtorch, &[]).as_deref(), Some(other));
        assert_eq!(told(&libtorch, &["LIBTORCH_BYPASS_VERSION_CHECK"]), None);
        assert_eq!(told(&libtorch, &["LIBTORCH_USE_PYTORCH"]), None);
        fs::remove_file(libtorch.join("lib/libtorch_cpu.so")).unwrap();
        let no_library = format!("but there is no libtorch_cpu.so in {:?}", libtorch.join("lib"));
        assert_eq!(told(&libtorch, &[]), Some(no_library));
        let header = libtorch.join(HEADERS[0]);
        fs::remove_file(&header).unwrap();
        assert_eq!(
            told(&libtorch, &[]),
            Some(format!("but {header:?} does not state its version"))
        );
        fs::remove_dir_all(&libtorch).unwrap();
        assert_eq!(told(&libtorch, &[]).as_deref(), Some("which is no folder"));
        for relative in ["", "libtorch"] {
            let relative = told(Path::new(relative), &[]);
            assert_eq!(relative.as_deref(), Some("which is not an absolute path"));
        }
    }
}
