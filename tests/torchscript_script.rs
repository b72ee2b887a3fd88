//! The script that writes the modules of the tests, where there is a PyTorch.

use std::path::Path;
use std::process::Command;

const FOLDER: &str = "tests/torchscript";

/// As its first lines say. The files have no time or path in them.
#[test]
fn the_script_writes_these_modules() {
    let Some(pytorch) = std::env::var_os("PYTORCH") else {
        eprintln!("left out, as PYTORCH, a folder for PYTHONPATH, is not set");
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("torchscript_script");
    std::fs::create_dir_all(&folder).unwrap();
    let (sources, script) = (Path::new(FOLDER), "script.py");
    std::fs::copy(sources.join(script), folder.join(script)).unwrap();
    let code = format!("exec(compile(open({script:?}).read(), {script:?}, 'exec'))");
    let mut python = Command::new("python3");
    python.args(["-c", &code]).env("PYTHONPATH", pytorch).current_dir(&folder);
    let status = python.status().unwrap();
    assert!(status.success(), "{python:?}: {status}");
    for name in ["operations.pt", "regression.pt", "test.pt"] {
        let [made, stored] =
            [&*folder, sources].map(|folder| std::fs::read(folder.join(name)).unwrap());
        assert!(made == stored, "{FOLDER}/{name} is not what {FOLDER}/{script} writes");
    }
}
