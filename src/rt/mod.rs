//! To come: see the module map in the crate documentation.
