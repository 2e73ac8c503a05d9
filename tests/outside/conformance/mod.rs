//! The conformance table: each sentence about a server in the specification and in the behaviours we match, as raw
//! bytes in and raw bytes out, named by the symptom a client would see if it were broken.

mod context;
mod exports;
mod extended;
mod failures;
mod greeting;
mod oldstyle;
mod options;
mod query;
mod refusals;
mod sparse;
mod status;
mod transmission;
mod zeroes;
