//! Pure: (configuration, node, secrets) -> what is wanted.

pub mod spec;
