//! End of this package's programs.

use std::fmt::Display;
use std::process::ExitCode;

use serde::Serialize;

/// Prints the outcome as a JSON object in one line, or the error.
pub fn report(program: &str, outcome: Result<impl Serialize, impl Display>) -> ExitCode {
    match outcome {
        Ok(report) => {
            println!("{}", serde_json::to_string(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(e) => failed(program, e),
    }
}

/// Prints an error to standard error.
pub fn failed(program: &str, why: impl Display) -> ExitCode {
    eprintln!("{program}: {why}");
    ExitCode::FAILURE
}
