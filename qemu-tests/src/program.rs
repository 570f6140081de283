//! How the programs of this package come to their end.

use std::fmt::Display;
use std::process::ExitCode;

use serde::Serialize;

/// Prints what came of it, as a JSON object in a line, or says why nothing did.
pub fn report(program: &str, outcome: Result<impl Serialize, impl Display>) -> ExitCode {
    match outcome {
        Ok(report) => {
            println!("{}", serde_json::to_string(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Err(e) => failed(program, e),
    }
}

/// Says why it failed, on standard error.
pub fn failed(program: &str, why: impl Display) -> ExitCode {
    eprintln!("{program}: {why}");
    ExitCode::FAILURE
}
