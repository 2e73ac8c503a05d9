//! The error numbers NBD puts on the wire. They are its own, whatever the host's are.

use std::fmt;

/// An error number as it stands in a reply; 0 is success. Unknown values are to be read as
/// [`Errno::EINVAL`] ("Error values" in the specification).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(pub u32);

impl Errno {
    /// Success.
    pub const OK: Self = Self(0);
    /// Not permitted: the export is read-only.
    pub const EPERM: Self = Self(1);
    /// The storage failed.
    pub const EIO: Self = Self(5);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// The request makes no sense here.
    pub const EINVAL: Self = Self(22);
    /// No space, or past the end of the export.
    pub const ENOSPC: Self = Self(28);
    /// The length is too large for one request.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported: the answer to a FAST_ZERO that would be slow.
    pub const ENOTSUP: Self = Self(95);
    /// The server is being shut down.
    pub const ESHUTDOWN: Self = Self(108);

    /// Narrows an errno of this host to the wire. Log the real one first: `EINVAL` stands for
    /// everything without a number of its own.
    pub const fn from_os(errno: i32) -> Self {
        match errno {
            0 => Self::OK,
            libc::EPERM | libc::EROFS => Self::EPERM,
            libc::EIO => Self::EIO,
            libc::ENOMEM => Self::ENOMEM,
            libc::EDQUOT | libc::EFBIG | libc::ENOSPC => Self::ENOSPC,
            libc::EOVERFLOW => Self::EOVERFLOW,
            libc::EOPNOTSUPP => Self::ENOTSUP,
            libc::ESHUTDOWN => Self::ESHUTDOWN,
            _ => Self::EINVAL,
        }
    }

    /// What it means, for a person, when nothing better is known.
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::OK => "success",
            Self::EPERM => "the operation is not permitted on this export",
            Self::EIO => "the storage behind the export reported an I/O error",
            Self::ENOMEM => "the server is out of memory",
            Self::EINVAL => "the request is not valid for this export",
            Self::ENOSPC => "there is no space left for this write",
            Self::EOVERFLOW => "the request is too large; split it into smaller ones",
            Self::ENOTSUP => "the export cannot do this faster than plain writes",
            Self::ESHUTDOWN => "the server is shutting down",
            _ => "the request failed for a reason without a name in NBD",
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OK => "OK",
            Self::EPERM => "EPERM",
            Self::EIO => "EIO",
            Self::ENOMEM => "ENOMEM",
            Self::EINVAL => "EINVAL",
            Self::ENOSPC => "ENOSPC",
            Self::EOVERFLOW => "EOVERFLOW",
            Self::ENOTSUP => "ENOTSUP",
            Self::ESHUTDOWN => "ESHUTDOWN",
            Self(other) => return write!(f, "Errno({other})"),
        };
        f.write_str(name)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_errnos_narrow_to_the_few_on_the_wire() {
        let table = [
            (0, 0),
            (libc::EPERM, 1),
            (libc::EROFS, 1),
            (libc::EIO, 5),
            (libc::ENOMEM, 12),
            (libc::EDQUOT, 28),
            (libc::EFBIG, 28),
            (libc::ENOSPC, 28),
            (libc::EOVERFLOW, 75),
            (libc::ENOTSUP, 95),
            (libc::EOPNOTSUPP, 95),
            (libc::ESHUTDOWN, 108),
            (libc::EINVAL, 22),
            (libc::EACCES, 22),
            (libc::EBADF, 22),
            (-1, 22),
            (i32::MAX, 22),
            (i32::MIN, 22),
        ];
        for (os, wire) in table {
            assert_eq!(Errno::from_os(os), Errno(wire), "{os}");
        }
        assert_eq!(format!("{:?} {}", Errno::ENOSPC, Errno(7)), "ENOSPC Errno(7)");
    }
}
