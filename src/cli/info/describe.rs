//! Exports in nbdinfo's layout, as text and as JSON.

use std::fmt::Write;

use super::Facts;
use crate::client::Uri;
use crate::proto::{Dialect, Found, TransmissionFlags};

/// What an export can do, under nbdinfo's keys and in its order.
const FLAGS: [(&str, TransmissionFlags); 10] = [
    ("is_rotational", TransmissionFlags::ROTATIONAL),
    ("is_read_only", TransmissionFlags::READ_ONLY),
    ("can_cache", TransmissionFlags::SEND_CACHE),
    ("can_df", TransmissionFlags::SEND_DF),
    ("can_fast_zero", TransmissionFlags::SEND_FAST_ZERO),
    ("can_flush", TransmissionFlags::SEND_FLUSH),
    ("can_fua", TransmissionFlags::SEND_FUA),
    ("can_multi_conn", TransmissionFlags::CAN_MULTI_CONN),
    ("can_trim", TransmissionFlags::SEND_TRIM),
    ("can_zero", TransmissionFlags::SEND_WRITE_ZEROES),
];

pub(super) fn text(facts: &Facts) -> String {
    let packets = match facts.dialect {
        Dialect::Simple => "simple",
        Dialect::Structured => "structured",
        Dialect::Extended => "extended",
    };
    let tls = if facts.tls { "with" } else { "without" };
    let mut out = format!("protocol: {} {tls} TLS, using {packets} packets\n", facts.protocol);
    for (index, found) in facts.exports.iter().enumerate() {
        describe(&mut out, facts, found, content(facts, index));
    }
    out
}

fn content(facts: &Facts, index: usize) -> Option<&str> {
    facts.contents.get(index)?.as_deref()
}

fn describe(out: &mut String, facts: &Facts, found: &Found, content: Option<&str>) {
    let mut line = |words: String| {
        out.push_str(&words);
        out.push('\n');
    };
    line(format!("export={}:", quoted(&found.name)));
    if let Some(description) = &found.description {
        line(format!("\tdescription: {description}"));
    }
    if let Some((size, _)) = found.export {
        let short = human(size);
        let short = if short == size.to_string() { String::new() } else { format!(" ({short})") };
        line(format!("\texport-size: {size}{short}"));
    }
    if let Some(content) = content {
        line(format!("\tcontent: {content}"));
    }
    line(format!("\turi: {}", uri_of(facts, found)));
    if !found.contexts.is_empty() {
        line("\tcontexts:".to_owned());
        found.contexts.iter().for_each(|context| line(format!("\t\t{context}")));
    }
    if let Some((_, flags)) = found.export {
        FLAGS.iter().for_each(|(key, flag)| line(format!("\t{key}: {}", flags.contains(*flag))));
    }
    for (key, bytes) in block_sizes(found) {
        line(format!("\t{key}: {bytes}"));
    }
    if let Some((reply, words)) = &found.refused {
        line(format!("\trefused: {reply} {words}").trim_end().to_owned());
    }
}

pub(super) fn json(facts: &Facts) -> String {
    let mut out = String::new();
    let structured = facts.dialect != Dialect::Simple;
    let _ = write!(
        out,
        "{{\n\"protocol\": {},\n\"TLS\": {},\n\"structured\": {structured},\n",
        quoted(facts.protocol),
        facts.tls
    );
    if facts.dialect == Dialect::Extended {
        out.push_str("\"extended\": true,\n");
    }
    out.push_str("\"exports\": [\n");
    let exports: Vec<_> = facts
        .exports
        .iter()
        .enumerate()
        .map(|(index, found)| object(facts, found, content(facts, index)))
        .collect();
    out.push_str(&exports.join(",\n"));
    out.push_str(if exports.is_empty() { "]\n}\n" } else { " ]\n}\n" });
    out
}

fn object(facts: &Facts, found: &Found, content: Option<&str>) -> String {
    let mut members = vec![format!("\"export-name\": {}", quoted(&found.name))];
    if let Some(description) = &found.description {
        members.push(format!("\"description\": {}", quoted(description)));
    }
    if let Some(content) = content {
        members.push(format!("\"content\": {}", quoted(content)));
    }
    members.push(format!("\"uri\": {}", quoted(&uri_of(facts, found))));
    if !found.contexts.is_empty() {
        let contexts: Vec<_> =
            found.contexts.iter().map(|context| format!("\t\t{}", quoted(context))).collect();
        members.push(format!("\"contexts\": [\n{}\n\t]", contexts.join(",\n")));
    }
    if let Some((_, flags)) = found.export {
        members.extend(FLAGS.iter().map(|(key, flag)| format!("\"{key}\": {}", flags.contains(*flag))));
    }
    members.extend(block_sizes(found).map(|(key, bytes)| format!("\"{key}\": {bytes}")));
    if let Some((size, _)) = found.export {
        members.push(format!("\"export-size\": {size}"));
        members.push(format!("\"export-size-str\": {}", quoted(&human(size))));
    }
    if let Some((reply, words)) = &found.refused {
        members.push(format!("\"refused\": {}", quoted(format!("{reply} {words}").trim_end())));
    }
    format!("\t{{\n\t{}\n\t}}", members.join(",\n\t"))
}

fn uri_of(facts: &Facts, found: &Found) -> String {
    Uri { export: found.name.clone(), ..facts.uri.clone() }.to_string()
}

fn block_sizes(found: &Found) -> impl Iterator<Item = (&'static str, u32)> {
    found.block.into_iter().flat_map(|block| {
        [
            ("block_size_minimum", block.minimum),
            ("block_size_preferred", block.preferred),
            ("block_size_maximum", block.maximum),
        ]
    })
}

/// A string in JSON, which is also how names are quoted in text: what a server says does not reach a terminal raw.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Bytes in the largest unit that divides them.
fn human(bytes: u64) -> String {
    let (mut count, mut units) = (bytes, ["", "K", "M", "G", "T", "P", "E"].into_iter());
    let mut unit = units.next().unwrap_or_default();
    while count >= 1024 && count.is_multiple_of(1024) {
        let Some(next) = units.next() else { break };
        (count, unit) = (count / 1024, next);
    }
    format!("{count}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_unit_that_divides_them() {
        let cases = [
            (0, "0"),
            (1000, "1000"),
            (1024, "1K"),
            (10 << 20, "10M"),
            (2_125_119_488, "2075312K"),
            (1 << 60, "1E"),
        ];
        for (bytes, words) in cases {
            assert_eq!(human(bytes), words);
        }
    }
}
