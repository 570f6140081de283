//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::Parser;
use std::process::ExitCode;
use vhost_device_blockring::config::Config;
use vhost_device_blockring::server;

/// What is logged unless the environment says otherwise. The queue's crate logs what a guest does wrong, each time; we do it ourselves,
/// at a pace.
const LOG: &str = "info,virtio_queue=off";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(LOG)).init();
    let config = Config::parse();
    if config.print_capabilities {
        println!("{}", server::capabilities());
        return ExitCode::SUCCESS;
    }
    match server::run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("vhost-device-blockring: {failure}");
            ExitCode::FAILURE
        }
    }
}
