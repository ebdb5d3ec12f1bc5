//! Arguments, logging, dispatch; nothing else.
fn main() {}
