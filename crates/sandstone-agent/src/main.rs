//! The binary that runs as process 1 inside a sandbox. See the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Standard error leads nowhere in a sandbox, so the exit code is all there is to say.
    let Ok(descriptors) = sandstone_agent::inherited_descriptors() else {
        return ExitCode::from(2);
    };
    match sandstone_agent::run(descriptors.listener, descriptors.ready) {
        Ok(never) => match never {},
        Err(_) => ExitCode::FAILURE,
    }
}
