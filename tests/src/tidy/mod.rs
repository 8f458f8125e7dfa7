//! The rules that keep the workspace in shape, as functions that list what breaks them.
//!
//! [`source`] judges one parsed Rust file, [`manifest`] judges what cargo knows. Each rule has
//! a unit test with a planted violation beside it; `tests/tidy.rs` applies them to the
//! workspace.

pub mod manifest;
pub mod source;

/// Longest source file, in lines.
pub const MAX_LINES: usize = 900;

/// Whether a file's text names a directory of one machine, and which.
///
/// Such a path works for one person only, and says where a file was written.
pub fn machine_path(text: &str) -> Option<&'static str> {
    // Spelled in pieces, so that this file keeps its own rule.
    const HOMES: [&str; 4] = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("/wo", "rk/"),
    ];
    HOMES.into_iter().find(|home| {
        text.match_indices(home).any(|(at, _)| {
            // `a/home/b` is a relative path and `https://host/home/` an address.
            let before = text[..at].chars().next_back();
            !before.is_some_and(|c| c.is_alphanumeric() || "._-~}".contains(c))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_path_is_found() {
        let home = concat!("/ho", "me/me/x");
        assert!(machine_path(&format!("see {home}")).is_some());
        assert!(machine_path(&format!("path = \"{home}\"")).is_some());
        assert!(machine_path(&format!("see docs{home}")).is_none());
        assert!(machine_path("see /usr/lib/bpf and /sys/devices").is_none());
    }
}
