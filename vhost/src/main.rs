//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use std::process::ExitCode;
use vhost_device_blockring::config::Arguments;
use vhost_device_blockring::server;
use vhost_device_blockring::settings::Settings;

/// What is logged unless the environment says otherwise. The queue's crate logs what a guest does wrong, each time; we do it ourselves,
/// at a pace.
const LOG: &str = "info,virtio_queue=off";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG)).init();
    let arguments = Arguments::parse();
    if arguments.print_capabilities {
        println!("{}", server::capabilities());
        return ExitCode::SUCCESS;
    }
    let settings = match Settings::try_from(arguments) {
        Ok(settings) => settings,
        Err(invalid) => Arguments::command().error(ErrorKind::ValueValidation, invalid).exit(),
    };
    match server::run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhost-device-blockring: {failure}");
            ExitCode::FAILURE
        }
    }
}
