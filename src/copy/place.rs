//! What a word of the command line names.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use crate::client::{Uri, UriError};

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An export.
    Nbd(Uri),
    /// Something in the file system.
    Path(PathBuf),
    /// Standard input or standard output: `-`.
    Standard,
    /// Nowhere: `null:`, a destination only.
    Null,
}

impl Place {
    /// Reads a word: `-`, `null:`, an NBD URI, else a path. A file whose name looks like one of the others has a path that
    /// does not: `./-`.
    ///
    /// # Errors
    /// [`UriError`] for URIs, also of other kinds, that are none of ours.
    pub fn parse(word: OsString) -> Result<Self, UriError> {
        let Some(text) = word.to_str() else { return Ok(Self::Path(word.into())) };
        match text {
            "-" => return Ok(Self::Standard),
            "null:" => return Ok(Self::Null),
            _ => {}
        }
        let is_uri =
            text.starts_with("nbd:") || text.split_once("://").is_some_and(|(start, _)| is_scheme(start));
        if is_uri { Ok(Self::Nbd(Uri::parse(text)?)) } else { Ok(Self::Path(word.into())) }
    }
}

/// RFC 3986 section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nbd(uri) => uri.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Standard => f.write_str("-"),
            Self::Null => f.write_str("null:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_apart() {
        let parse = |text: &str| Place::parse(text.into());
        assert_eq!(parse("-"), Ok(Place::Standard));
        assert_eq!(parse("null:"), Ok(Place::Null));
        for path in ["./-", "./null:", "disk.img", "nbd", "a b://c", "dir/nbd://x", "/dev/nbd0"] {
            assert_eq!(parse(path), Ok(Place::Path(path.into())));
        }
        for uri in ["nbd://host/a", "nbd+unix:///a?socket=/s", "nbd:host:10809", "NBD://host"] {
            assert!(matches!(parse(uri), Ok(Place::Nbd(_))), "{uri}");
        }
        for wrong in ["http://host/", "nbds+unix:///", "nbd+unix:///"] {
            parse(wrong).expect_err(wrong);
        }
    }
}
