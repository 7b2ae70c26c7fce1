//! image
pub mod erofs;
