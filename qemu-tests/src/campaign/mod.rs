//! Crash campaigns: the ends of rings are killed at random instants, or the power fails, and logs outside the rings tell whether
//! everything that was promised holds.

pub mod check;
