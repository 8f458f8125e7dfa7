//! The `offmap` command.
#![forbid(unsafe_code)]

fn main() {
    for path in std::env::args().skip(1) {
        match offmap_cli::object::load(path.as_ref()) {
            Ok(maps) => println!("{path}: {maps:#?}"),
            Err(e) => println!("{e}"),
        }
    }
}
