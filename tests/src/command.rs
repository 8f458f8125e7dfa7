//! The `offmap` command, as a user runs it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The command, built in the profile of this test when it is not there yet or is stale.
///
/// # Panics
///
/// When it cannot be built.
pub fn offmap() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        // target/PROFILE/deps/TEST-HASH
        let test = env::current_exe().unwrap();
        let folder = test.ancestors().nth(2).unwrap();
        let profile = match folder.file_name().and_then(|f| f.to_str()) {
            Some("debug") | None => "test",
            Some(profile) => profile,
        };
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bin", "offmap"])
            .args(["--profile", profile, "--target-dir"])
            .arg(folder.parent().unwrap())
            .status()
            .unwrap();
        assert!(built.success(), "cargo build: {built}");
        folder.join(format!("offmap{}", env::consts::EXE_SUFFIX))
    })
}
