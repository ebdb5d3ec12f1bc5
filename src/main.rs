//! Dispatch to the library; nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    labd::cli::main()
}
