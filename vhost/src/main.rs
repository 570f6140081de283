//! `vhost-device-blockring`: a ring as a disk of a virtual machine.

use clap::Parser;
use std::process::ExitCode;
use vhost_device_blockring::config::Config;
use vhost_device_blockring::server;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
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
