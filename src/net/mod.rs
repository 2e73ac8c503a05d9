//! Where clients come in.

pub mod listen;
