//! The command line of l4tool.
fn main() {}
