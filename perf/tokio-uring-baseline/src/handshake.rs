//! The fixed newstyle handshake for one export, the default one.

use std::io;

use crate::stream::Stream;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_LENGTH_MAX: u32 = 4096;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const INFO: u32 = 6;
const GO: u32 = 7;

const ACK: u32 = 1;
const SERVER: u32 = 2;
const INFORMATION: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
const UNKNOWN: u32 = 0x8000_0006;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, CAN_MULTI_CONN.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8;

/// Whether transmission begins.
pub(crate) async fn shake_hands(stream: &Stream, size: u64) -> io::Result<bool> {
    stream.write_all(b"NBDMAGICIHAVEOPT\x00\x03".to_vec()).await?;
    let client_flags = take(stream, 4).await?;
    let no_zeroes = client_flags[3] & 2 != 0;
    loop {
        let header = take(stream, 16).await?;
        let (Some(OPTION_MAGIC), Some(option), Some(length)) =
            (header.first_chunk(), word(&header, 8), word(&header, 12))
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if length > OPTION_LENGTH_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let data = take(stream, length as usize).await?;
        match option {
            EXPORT_NAME if data.is_empty() => {
                let mut answer = [size.to_be_bytes().as_slice(), &EXPORT_FLAGS.to_be_bytes()].concat();
                answer.extend_from_slice(if no_zeroes { &[] } else { &[0; 124] });
                stream.write_all(answer).await?;
                return Ok(true);
            }
            EXPORT_NAME => return Ok(false),
            ABORT => {
                stream.write_all(reply(option, ACK, &[])).await?;
                return Ok(false);
            }
            LIST => {
                let answer = [reply(option, SERVER, &[0; 4]), reply(option, ACK, &[])];
                stream.write_all(answer.concat()).await?;
            }
            // The default export's name has no bytes.
            INFO | GO if word(&data, 0) == Some(0) => {
                let item = [&[0, 0], size.to_be_bytes().as_slice(), &EXPORT_FLAGS.to_be_bytes()].concat();
                let answer = [reply(option, INFORMATION, &item), reply(option, ACK, &[])];
                stream.write_all(answer.concat()).await?;
                if option == GO {
                    return Ok(true);
                }
            }
            INFO | GO => stream.write_all(reply(option, UNKNOWN, &[])).await?,
            _ => stream.write_all(reply(option, UNSUPPORTED, &[])).await?,
        }
    }
}

async fn take(stream: &Stream, length: usize) -> io::Result<Vec<u8>> {
    let (result, bytes) = stream.append(Vec::with_capacity(length), length).await;
    result.map(|()| bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    #[allow(clippy::cast_possible_truncation)] // 12 bytes at most
    let length = data.len() as u32;
    let words = [option, kind, length].map(u32::to_be_bytes);
    [REPLY_MAGIC.to_be_bytes().as_slice(), words.as_flattened(), data].concat()
}
