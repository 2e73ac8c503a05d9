//! Reading big-endian numbers from bytes that nobody has checked.

/// A place in a slice. Every read either yields all it asked for or moves nothing.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    bytes: &'a [u8],
    consumed: usize,
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, consumed: 0 }
    }

    /// Bytes read so far.
    pub const fn consumed(&self) -> usize {
        self.consumed
    }

    /// Bytes not read yet.
    pub const fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// All was read.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `length` bytes, or `None` if there are fewer.
    pub const fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        match self.bytes.split_at_checked(length) {
            Some((head, tail)) => {
                self.bytes = tail;
                self.consumed += length;
                Some(head)
            }
            None => None,
        }
    }

    /// Skips up to `length` bytes and says how many.
    pub fn skip(&mut self, length: usize) -> usize {
        let length = length.min(self.bytes.len());
        self.bytes = &self.bytes[length..];
        self.consumed += length;
        length
    }

    /// Everything that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let bytes = self.bytes;
        self.consumed += bytes.len();
        self.bytes = &[];
        bytes
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A 32-bit length and that many bytes; moves nothing unless both are there.
    pub fn counted(&mut self) -> Option<&'a [u8]> {
        let mut ahead = self.clone();
        let length = usize::try_from(ahead.u32()?).ok()?;
        let bytes = ahead.take(length)?;
        *self = ahead;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = tail;
        self.consumed += N;
        Some(*head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_past_the_end_moves_nothing() {
        let mut cursor = Cursor::new(&[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(cursor.u64(), None);
        assert_eq!(cursor.u32(), Some(0x0102_0304));
        assert_eq!(cursor.u32(), None);
        assert_eq!((cursor.consumed(), cursor.remaining()), (4, 3));
        assert_eq!(cursor.take(4), None);
        assert_eq!(cursor.u16(), Some(0x0506));
        assert_eq!(cursor.skip(9), 1);
        assert!(cursor.is_empty() && cursor.rest().is_empty());
    }

    #[test]
    fn a_counted_string_that_lies_moves_nothing() {
        let mut cursor = Cursor::new(&[0, 0, 0, 3, b'a', b'b']);
        assert_eq!(cursor.counted(), None);
        assert_eq!(cursor.consumed(), 0);
        let mut cursor = Cursor::new(&[0xff, 0xff, 0xff, 0xff, b'a']);
        assert_eq!(cursor.counted(), None);
        let mut cursor = Cursor::new(&[0, 0, 0, 2, b'a', b'b', b'c']);
        assert_eq!(cursor.counted(), Some(&b"ab"[..]));
        assert_eq!(cursor.rest(), b"c");
    }
}
