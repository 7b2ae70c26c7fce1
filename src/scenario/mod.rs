//! Scenarios: a cluster of the baked images, driven step by step, with faults and a report.

pub mod report;
pub mod result;
