//! The `kiln` program: see [`kiln::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    kiln::cli::main()
}
