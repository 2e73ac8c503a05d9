//! Options and their replies, as the server sees them.
//!
//! ```text
//! option  magic64 option32 length32                      length bytes follow
//! reply   magic64 option32 type32 length32               length bytes follow
//!
//! INFO, GO                 name: length32 bytes; count16; count x info16
//! LIST_, SET_META_CONTEXT  name: length32 bytes; count32; count x (length32 bytes)
//! ```

use bytes::BufMut;

use super::consts::{
    InfoType, OPTION_HEADER_LENGTH, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionCode, OptionReply,
    STRING_LENGTH_MAX,
};
use super::cursor::Cursor;
use super::export::{BlockSizes, Listing};
use super::violation::Violation;

/// Why a payload is malformed, as a sentence for the client.
pub(super) type Fault = &'static str;

/// An option without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHeader {
    pub(super) code: OptionCode,
    pub(super) length: u32,
}

impl OptionHeader {
    /// `None` asks for more bytes; then nothing was consumed.
    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Option<Self>, Violation> {
        let mut ahead = cursor.clone();
        let Some(magic) = ahead.u64() else {
            return Ok(None);
        };
        if magic != OPTION_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        let (Some(code), Some(length)) = (ahead.u32(), ahead.u32()) else {
            return Ok(None);
        };
        debug_assert_eq!(ahead.consumed() - cursor.consumed(), OPTION_HEADER_LENGTH);
        *cursor = ahead;
        Ok(Some(Self { code: OptionCode(code), length }))
    }
}

/// What INFO and GO ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) name: String,
    pub(super) wants_name: bool,
    pub(super) wants_block_size: bool,
}

impl InfoRequest {
    pub(super) fn decode(payload: &[u8], name_length_max: u32) -> Result<Self, Fault> {
        let mut cursor = Cursor::new(payload);
        let name = export_name(&mut cursor, name_length_max)?;
        let count = cursor.u16().ok_or("the payload ends before the number of information requests")?;
        if cursor.remaining() != 2 * usize::from(count) {
            return Err("the number of information requests does not fit the length of the option");
        }
        let mut request = Self { name, wants_name: false, wants_block_size: false };
        while let Some(info) = cursor.u16() {
            match InfoType(info) {
                InfoType::NAME => request.wants_name = true,
                InfoType::BLOCK_SIZE => request.wants_block_size = true,
                // EXPORT and DESCRIPTION come anyway; what is unknown must be ignored.
                _ => {}
            }
        }
        Ok(request)
    }
}

/// The export name that INFO, GO and the meta context options begin with.
pub(super) fn export_name(cursor: &mut Cursor<'_>, length_max: u32) -> Result<String, Fault> {
    if cursor.remaining() < 4 {
        return Err("the payload ends before the length of the export name");
    }
    let bytes = cursor.counted().ok_or("the export name is longer than the option that holds it")?;
    checked_name(bytes, length_max)
}

/// An export name as the specification wants strings: UTF-8, no NUL, bounded.
pub(super) fn checked_name(bytes: &[u8], length_max: u32) -> Result<String, Fault> {
    if u32::try_from(bytes.len()).map_or(true, |length| length > length_max) {
        return Err("the export name is too long");
    }
    if bytes.contains(&0) {
        return Err("the export name contains a NUL");
    }
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "the export name is not UTF-8")
}

/// Writes one option reply. Strings in `payload` are already within the protocol's bounds.
pub(super) fn reply(out: &mut Vec<u8>, option: OptionCode, kind: OptionReply, payload: &[&[u8]]) {
    let length: usize = payload.iter().map(|part| part.len()).sum();
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option.0);
    out.put_u32(kind.0);
    out.extend_from_slice(&length_field(length));
    for part in payload {
        out.extend_from_slice(part);
    }
}

/// Success.
pub(super) fn ack(out: &mut Vec<u8>, option: OptionCode) {
    reply(out, option, OptionReply::ACK, &[]);
}

/// An error with its sentence.
pub(super) fn refuse(out: &mut Vec<u8>, option: OptionCode, kind: OptionReply, text: &str) {
    reply(out, option, kind, &[clip(text, STRING_LENGTH_MAX).as_bytes()]);
}

/// Size and flags.
pub(super) fn info_export(out: &mut Vec<u8>, option: OptionCode, size: u64, flags: u16) {
    info(out, option, InfoType::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
}

/// Block sizes.
pub(super) fn info_block_size(out: &mut Vec<u8>, option: OptionCode, block: BlockSizes) {
    let [minimum, preferred, maximum] = [block.minimum, block.preferred, block.maximum].map(u32::to_be_bytes);
    info(out, option, InfoType::BLOCK_SIZE, &[&minimum, &preferred, &maximum]);
}

/// Name or description.
pub(super) fn info_string(out: &mut Vec<u8>, option: OptionCode, kind: InfoType, text: &str) {
    info(out, option, kind, &[clip(text, STRING_LENGTH_MAX).as_bytes()]);
}

fn info(out: &mut Vec<u8>, option: OptionCode, kind: InfoType, fields: &[&[u8]]) {
    let kind = kind.0.to_be_bytes();
    let mut payload: smallvec::SmallVec<[&[u8]; 4]> = smallvec::smallvec![&kind[..]];
    payload.extend_from_slice(fields);
    reply(out, option, OptionReply::INFO, &payload);
}

/// One export of a list.
pub(super) fn listing(out: &mut Vec<u8>, export: &Listing) {
    let name = clip(&export.name, STRING_LENGTH_MAX).as_bytes();
    let description = clip(export.description.as_deref().unwrap_or_default(), STRING_LENGTH_MAX);
    let payload = [&length_field(name.len())[..], name, description.as_bytes()];
    reply(out, OptionCode::LIST, OptionReply::SERVER, &payload);
}

/// One meta context.
pub(super) fn meta_context(out: &mut Vec<u8>, option: OptionCode, id: u32, name: &str) {
    let name = clip(name, STRING_LENGTH_MAX);
    reply(out, option, OptionReply::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
}

fn length_field(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// The start of `text`, at most `length_max` bytes, cut between characters.
pub(super) fn clip(text: &str, length_max: usize) -> &str {
    let mut end = text.len().min(length_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// A name from the wire as it may stand in a sentence: quoted, printable, cut at 80 characters.
pub(super) fn quoted(name: &str) -> String {
    const SHOWN_MAX: usize = 80;
    let (shown, more) = match name.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => (&name[..end], "..."),
        None => (name, ""),
    };
    format!("\"{}\"{more}", printable(shown))
}

/// Text from the wire with all escaped that could do harm to a terminal or leave its quotes.
pub(super) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\'' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(clip("häuser", 7), "häuser");
        assert_eq!(clip("häuser", 3), "hä");
        assert_eq!(clip("häuser", 2), "h");
        assert_eq!(clip("", 0), "");
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(quoted("it's häuser"), "\"it's häuser\"");
        assert_eq!(quoted("a\"\n\u{202e}b\0"), "\"a\\\"\\n\\u{202e}b\\0\"");
        let long = quoted(&"x".repeat(81));
        assert_eq!((long.len(), long.ends_with("x\"...")), (85, true));
        assert!(!quoted(&"x".repeat(80)).ends_with("..."));
    }

    #[test]
    fn a_header_is_taken_whole_or_not_at_all() {
        let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 7, 0, 0, 1, 0, 0xaa]);
        for cut in 0..OPTION_HEADER_LENGTH {
            let mut cursor = Cursor::new(&bytes[..cut]);
            assert_eq!(OptionHeader::decode(&mut cursor), Ok(None));
            assert_eq!(cursor.consumed(), 0);
        }
        let mut cursor = Cursor::new(&bytes);
        let header = OptionHeader { code: OptionCode::GO, length: 256 };
        assert_eq!(OptionHeader::decode(&mut cursor), Ok(Some(header)));
        assert_eq!(cursor.rest(), [0xaa]);
    }

    #[test]
    fn strings_longer_than_the_protocol_allows_are_cut_with_a_length_that_fits() {
        let mut out = Vec::new();
        let export = Listing { name: "n".repeat(5000), description: Some("d".repeat(5000)) };
        listing(&mut out, &export);
        let mut cursor = Cursor::new(&out);
        assert_eq!(cursor.take(16).map(<[u8]>::len), Some(16));
        let mut payload = Cursor::new(cursor.counted().expect("a whole payload"));
        assert!(cursor.is_empty());
        assert_eq!(payload.counted().map(<[u8]>::len), Some(4096));
        assert_eq!(payload.remaining(), 4096);
    }
}
