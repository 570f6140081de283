//! The sink against real servers, driven as the engine drives it.

mod deliveries;
mod driver;
mod refusals;
